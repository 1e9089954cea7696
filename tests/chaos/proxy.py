"""A TCP proxy in front of a database that fails as networks do."""

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

from sqlalchemy import make_url

Side = Literal["both", "client", "server"]
_RESET = struct.pack("ii", 1, 0)
_INSERT = b"INSERT INTO agentexec_activity_log"
_SYNC = b"S\x00\x00\x00\x04"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


@dataclass(eq=False, slots=True)
class _Link:
    """A connection through the proxy. Once bytes of it were swallowed it can never work again."""

    client: socket.socket
    server: socket.socket | None = None
    silent: bool = False
    answers_left: bool = True


class Proxy:
    """Passes everything on, until it is told otherwise.

    Attributes:
        url: The database's URL, through the proxy.
        delay: Seconds that every answer of the server is held back.
        commit_tried: Set once what was to be swallowed was met.
    """

    def __init__(self, url: str) -> None:
        target = make_url(url)
        self._target = (target.host or "127.0.0.1", target.port or _PORTS[target.get_backend_name()])
        self._listener = _bound_socket()
        port: int = self._listener.getsockname()[1]
        self.url = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self.delay = 0.0
        self.commit_tried = threading.Event()
        self._swallow: Side | None = None
        self._cut_after = False
        self._hang: tuple[bytes, float] | None = None
        self._truncate = False
        self._black = False
        self._closed = False
        self._links: list[_Link] = []
        self._listening = threading.Event()
        self.let_pass()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self.refuse()
        self._listener.close()
        self._listening.set()

    # -- what the network does ------------------------------------------------------------------------------

    def let_pass(self) -> None:
        """Work again, for connections that are made from now on."""
        self._black = False
        self._listener.listen(64)
        self._listening.set()

    def refuse(self) -> None:
        """The server is gone: what is open is reset, what comes is refused."""
        self._listening.clear()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a bound socket that does not listen refuses
        self.cut()

    def blackhole(self) -> None:
        """Nothing comes back any more, on old connections and on new ones; nobody is told."""
        self._black = True

    def cut(self, side: Side = "both") -> int:
        """Reset every connection, or only one side of each, while the other one learns nothing. How many there were."""
        links, alive = self._links, 0
        for link in links:
            alive += not link.silent
            link.silent = True
            if side != "server":
                _reset(link.client)
            if side != "client" and link.server is not None:
                _reset(link.server)
        return alive

    def swallow_answer_to_commit(self, then_cut: Side | None) -> None:
        """The next COMMIT reaches the server, but its answer does not come back. Afterwards a side is cut, or none."""
        self.commit_tried.clear()
        self._swallow = then_cut or "both"
        self._cut_after = then_cut is not None

    def hang_before(self, words: bytes, part: float = 0.0) -> None:
        """From the next request with these words on nothing passes, but for a part of that request.

        The server keeps that session's transaction, and its locks, open.
        """
        self.commit_tried.clear()
        self._hang = (words, part)

    def stop_within_a_pipeline(self) -> None:
        """The next rows that PostgreSQL is sent in a pipeline lack the end of it, and the client is cut."""
        self.commit_tried.clear()
        self._truncate = True

    # -- threads --------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closed:
            self._listening.wait()
            try:
                client, _ = self._listener.accept()
            except OSError:
                time.sleep(0.005)
                continue
            link = _Link(client)
            self._links.append(link)
            if not self._black:
                self._connect(link)

    def _connect(self, link: _Link) -> None:
        try:
            link.server = socket.create_connection(self._target, timeout=5)
            for one in (link.client, link.server):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # nobody there, or cut meanwhile
            _reset(link.client)
            return
        for work in (self._pump_requests, self._pump_answers):
            threading.Thread(target=work, args=(link,), name="proxy-pump", daemon=True).start()

    def _pump_requests(self, link: _Link) -> None:
        server = link.server
        assert server is not None
        while data := _receive(link.client):
            if self._muted(link):
                continue
            if self._truncate and _INSERT in data:
                self._truncate, link.silent = False, True
                _send(server, data.removesuffix(_SYNC))
                _reset(link.client)
                self.commit_tried.set()
                continue
            if self._hang is not None and _says(data, self._hang[0]):
                _send(server, data[: int(len(data) * self._hang[1])])
                self._hang, self._black, link.silent = None, True, True
                self.commit_tried.set()
                continue
            if self._swallow is not None and _says(data.upper(), b"COMMIT"):
                side, self._swallow = self._swallow, None
                link.answers_left = False
                _send(server, data)
                self.commit_tried.wait(5)
                link.silent = True
                if self._cut_after:
                    self.cut(side)
                continue
            _send(server, data)
        if not link.silent:
            _close(server)

    def _pump_answers(self, link: _Link) -> None:
        server = link.server
        assert server is not None
        while data := _receive(server):
            if self._muted(link):
                continue
            if not link.answers_left:
                self.commit_tried.set()
                continue
            if self.delay:
                time.sleep(self.delay)
            _send(link.client, data)
        if not link.silent:
            _close(link.client)

    def _muted(self, link: _Link) -> bool:
        link.silent = link.silent or self._black
        return link.silent


def _bound_socket() -> socket.socket:
    """Bound by number: a port that the kernel chose is lost when the socket stops to listen."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        address = chosen.getsockname()
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound


def _says(data: bytes, words: bytes) -> bool:
    return words in data.replace(b"READ COMMITTED", b"")


def _receive(one: socket.socket) -> bytes:
    try:
        return one.recv(1 << 16)
    except OSError:
        return b""


def _send(one: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        one.sendall(data)


def _reset(one: socket.socket) -> None:
    """As a dead host does it. `close` alone would not wake a thread in `recv`."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    _close(one)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
