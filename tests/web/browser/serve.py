"""The dashboard in a process of its own: `serve.py DATABASE PORT`."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

import agentexec_otel as ax


def main(database: str, port: int) -> None:
    """Serve until a signal."""
    ax.configure(database)
    app = Starlette(routes=[Mount("/agents", ax.web.dashboard(authorize=ax.web.public, title="Agents of the test"))])
    uvicorn.run(app, port=port, log_level="error", lifespan="off")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
