"""A server with the dashboard of one database, for this machine only."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn
from sqlalchemy import Engine
from starlette.middleware.trustedhost import TrustedHostMiddleware

import agentexec_otel as ax
from agentexec_otel.activity import ActivityListItemSchema

HOST = "127.0.0.1"


class DashboardServer:
    """Listens at once, and serves when it is run.

    Args:
        port: 0 for any that is free.
        on_retry: See `ax.web.dashboard`.
    """

    def __init__(
        self, database: str | Engine, port: int, on_retry: Callable[[ActivityListItemSchema], None] | None = None
    ) -> None:
        app = ax.web.dashboard(authorize=ax.web.public, database=database, on_retry=on_retry)
        # Everybody who reaches this server may act. Another site must not, by a name that leads here.
        local = TrustedHostMiddleware(app, [HOST, "localhost"])
        self._server = uvicorn.Server(
            uvicorn.Config(local, HOST, port, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
        )
        self._socket = self._server.config.bind_socket()
        self._socket.listen()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self._socket.getsockname()[1]}/"

    async def serve(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        await self._server.serve([self._socket])

    def run(self) -> None:
        """The same, on an event loop of its own."""
        self._server.run([self._socket])
