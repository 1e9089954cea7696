"""A local server that speaks enough of OpenAI's Responses and Chat Completions APIs for the real client.

Each model has a base URL of its own, and a script: its first request gets the first reply, and so on.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self, cast

INPUT_TOKENS: Final = 10  # of each answer
OUTPUT_TOKENS: Final = 3
_MODEL: Final = "gpt-local"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

_numbers = itertools.count(1)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Say:
    """The model answers.

    Attributes:
        calls: The tools it calls, each with its arguments as JSON.
        stops: Why the answer is incomplete: ``length`` or ``content_filter``.
    """

    text: str | None = None
    refusal: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    stops: str | None = None


def call(tool: str, **arguments: Any) -> Say:
    """The model calls one tool."""
    return Say(calls=((tool, json.dumps(arguments)),))


@dataclass(frozen=True, slots=True)
class Fail:
    """The API refuses the request with this HTTP status."""

    status: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The API accepts the request, then reports that the model has failed."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is reset: before the answer, or in the middle of it."""

    midway: bool = False


@dataclass(frozen=True, slots=True)
class Garble:
    """The answer is not JSON."""


@dataclass(frozen=True, slots=True)
class Hang:
    """There is no answer until the server is closed."""


Reply = Say | Fail | GiveUp | Cut | Garble | Hang


class OpenAIServer(ThreadingHTTPServer):
    """The server, on a port of 127.0.0.1, while it is used as a context manager.

    Attributes:
        is_hanging: Set as soon as a request meets `Hang`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scripts: list[Iterator[Reply]] = []
        self.is_hanging = threading.Event()
        self.is_closing = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.is_closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def script(self, replies: Iterable[Reply]) -> str:
        """The base URL of a model that gives these replies."""
        self.scripts.append(iter(replies))
        return f"http://127.0.0.1:{self.server_port}/{len(self.scripts) - 1}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast("OpenAIServer", self.server)
        asked: Json = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = next(server.scripts[int(self.path.split("/")[1])])
        api = _Responses() if self.path.endswith("/responses") else _Chat()
        match reply:
            case Hang():
                server.is_hanging.set()
                server.is_closing.wait()
            case Cut(midway=False):
                self._reset()
            case Fail(status):
                error = {"message": HTTPStatus(status).phrase, "type": "error", "code": None, "param": None}
                self._send(status, json.dumps({"error": error}))
            case Garble():
                self._garble(asked)
            case _ if asked.get("stream"):
                self._stream([*api.events(reply)], cut=isinstance(reply, Cut))
            case _:
                self._send(200, json.dumps(api.body(reply)), cut=isinstance(reply, Cut))

    def _garble(self, asked: Json) -> None:
        if asked.get("stream"):
            self._stream(["data: {]\n\n"], cut=False)
        else:
            self._send(200, "{]")

    def _send(self, status: int, body: str, *, cut: bool = False) -> None:
        data = body.encode()
        self._head(status, "application/json", len(data))
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._reset()

    def _stream(self, events: Sequence[str], *, cut: bool) -> None:
        data = "".join(events[: len(events) // 2] if cut else events).encode()
        self._head(200, "text/event-stream", len(data) + cut)
        self.wfile.write(data)
        if cut:
            self._close()

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close()

    def _close(self) -> None:
        self.wfile.flush()
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name of the base class
        """Nothing."""


# -- the two APIs -----------------------------------------------------------------------------------------------


class _Responses:
    """Bodies and streams of ``/responses``."""

    def body(self, reply: Reply) -> Json:
        said = reply if isinstance(reply, Say) else Say("Half of it")
        incomplete = {"length": "max_output_tokens"}.get(said.stops or "", said.stops)
        status = "failed" if isinstance(reply, GiveUp) else "incomplete" if incomplete else "completed"
        return {
            "id": f"resp_{next(_numbers)}",
            "object": "response",
            "created_at": 0,
            "model": _MODEL,
            "status": status,
            "error": {"code": "server_error", "message": "The model failed."} if status == "failed" else None,
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "output": [] if status == "failed" else [*self._items(said)],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": INPUT_TOKENS,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": OUTPUT_TOKENS,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
            },
        }

    def _items(self, said: Say) -> Iterator[Json]:
        if said.text is not None or said.refusal is not None:
            part: Json = {"type": "output_text", "text": said.text, "annotations": []}
            if said.refusal is not None:
                part = {"type": "refusal", "refusal": said.refusal}
            yield {
                "id": f"msg_{next(_numbers)}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        for name, arguments in said.calls:
            number = next(_numbers)
            yield {
                "id": f"fc_{number}",
                "type": "function_call",
                "call_id": f"call_{number}",
                "name": name,
                "arguments": arguments,
                "status": "completed",
            }

    def events(self, reply: Reply) -> Iterator[str]:
        body = self.body(reply)
        events: list[Json] = [
            {"type": "response.created", "response": {**body, "status": "in_progress", "output": [], "usage": None}}
        ]
        events += [
            {"type": f"response.output_item.{event}", "output_index": index, "item": item}
            for index, item in enumerate(body["output"])
            for event in ("added", "done")
        ]
        events.append({"type": f"response.{body['status']}", "response": body})
        for number, event in enumerate(events):
            yield _sse(event | {"sequence_number": number}, event["type"])


class _Chat:
    """Bodies and streams of ``/chat/completions``."""

    def body(self, reply: Reply) -> Json:
        said = reply if isinstance(reply, Say) else Say("Half of it")
        message: Json = {"role": "assistant", "content": said.text, "refusal": said.refusal}
        if calls := [*self._calls(said)]:
            message["tool_calls"] = calls
        return self._envelope("chat.completion", {"message": message, "finish_reason": self._finish(said)})

    def events(self, reply: Reply) -> Iterator[str]:
        said = reply if isinstance(reply, Say) else Say("Half of it")
        if isinstance(reply, GiveUp):
            yield _sse({"error": {"message": "The model failed.", "type": "server_error", "code": None}})
            return
        deltas: list[Json] = [{"role": "assistant", "content": said.text, "refusal": said.refusal}]
        deltas += [{"tool_calls": [{"index": index} | one]} for index, one in enumerate(self._calls(said))]
        for delta in deltas:
            yield _sse(self._envelope("chat.completion.chunk", {"delta": delta, "finish_reason": None}, usage=False))
        yield _sse(self._envelope("chat.completion.chunk", {"delta": {}, "finish_reason": self._finish(said)}))
        yield "data: [DONE]\n\n"

    def _envelope(self, kind: str, choice: Json, *, usage: bool = True) -> Json:
        counts = {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        return {
            "id": "chatcmpl_1",
            "object": kind,
            "created": 0,
            "model": _MODEL,
            "choices": [{"index": 0, "logprobs": None} | choice],
            "usage": counts if usage else None,
        }

    def _finish(self, said: Say) -> str:
        return said.stops or ("tool_calls" if said.calls else "stop")

    def _calls(self, said: Say) -> Iterator[Json]:
        for name, arguments in said.calls:
            yield {
                "id": f"call_{next(_numbers)}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }


def _sse(data: Json, event: str | None = None) -> str:
    head = "" if event is None else f"event: {event}\n"
    return f"{head}data: {json.dumps(data)}\n\n"
