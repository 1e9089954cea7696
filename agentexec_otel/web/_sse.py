"""Server-Sent Events, as the HTML standard has them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Final

from fastapi.responses import StreamingResponse
from pydantic import BaseModel

HEARTBEAT: Final = b": alive\n\n"


def encoded(name: str, data: BaseModel | str, cursor: str | None = None) -> bytes:
    """An event as it is sent. A browser that connects again sends the cursor as ``Last-Event-ID``."""
    text = data if isinstance(data, str) else data.model_dump_json()  # JSON has no line breaks
    place = "" if cursor is None else f"id: {cursor}\n"
    return f"event: {name}\n{place}data: {text}\n\n".encode()


def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response that is not cached or buffered on its way."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def server_stops() -> bool:
    """Whether the server of this process waits for its responses to end. It cannot, while a stream is open.

    uvicorn says so in its signal handler's object only, before it notifies the application.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
