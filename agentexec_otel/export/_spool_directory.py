"""The spool's directory: ours alone, or not used at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentexec_otel._errors import AgentExecError


class SpoolError(AgentExecError):
    """The spool cannot take a record. Handled by the processor, never raised to the application."""


class SpoolUnavailableError(SpoolError):
    """No spool can be kept there; the message is one sentence that says why."""


class SpoolFullError(SpoolError):
    """No room: the spool's limit or the disk's. Records already taken are safe."""


def default_directory(chosen: str | None = None) -> Path:
    """The chosen directory, else ``AGENTEXEC_SPOOL_DIR``, else the platform's folder for a user's state.

    Raises:
        SpoolUnavailableError: there is no such folder, since the user has no home.
    """
    from platformdirs import user_state_path

    chosen = chosen or os.environ.get("AGENTEXEC_SPOOL_DIR")
    try:
        return Path(chosen).expanduser().absolute() if chosen else user_state_path("agentexec-otel")
    except RuntimeError:
        raise SpoolUnavailableError(
            "this user has no home directory to keep the spool in; name one in AGENTEXEC_SPOOL_DIR"
        ) from None


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A file in the directory, as it was when looked at."""

    name: str
    size: int
    modified_ns: int


class SpoolDirectory:
    """``base/leaf``, created with mode 0700 where missing.

    Attributes:
        fd: Everything goes through this descriptor, so that nobody can put another directory in its place.

    Raises:
        SpoolUnavailableError: the directory cannot be written, or others could tamper with it.
    """

    def __init__(self, base: Path, leaf: str) -> None:
        self._base = base
        self._leaf = leaf
        self.fd = _open_directory(base, leaf)
        self._identity = file_identity(self.fd)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._base / self._leaf

    def ensure(self) -> None:
        """Open it again if somebody has closed every descriptor of the process, as those do who become daemons."""
        if file_identity(self.fd) != self._identity:
            self.fd = _open_directory(self._base, self._leaf)
            self._identity = file_identity(self.fd)

    def restore(self) -> None:
        """Make it again after somebody removed it. The descriptor keeps its number, for threads that are using it."""
        fresh = _open_directory(self._base, self._leaf)
        os.dup2(fresh, self.fd, inheritable=False)
        os.close(fresh)
        self._identity = file_identity(self.fd)

    def __del__(self) -> None:
        # Not where the number has become somebody else's.
        with suppress(AttributeError, TypeError):
            if file_identity(self.fd) == self._identity:
                os.close(self.fd)

    def entries(self) -> list[Entry]:
        """What is in it, by name; nothing once it has been removed."""
        with suppress(OSError, SpoolError):
            self.ensure()
            # A descriptor of its own, since threads and forked children share the position of the other.
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                return sorted(_entries(fd))
            finally:
                os.close(fd)
        return []


def file_identity(fd: int) -> tuple[int, int] | None:
    """Tells whether a descriptor is still the one that was opened. None where it is closed, or its file removed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_nlink else None


def _entries(fd: int) -> Iterator[Entry]:
    for name in os.listdir(fd):
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield Entry(name, found.st_size, found.st_mtime_ns)


def _open_directory(base: Path, leaf: str) -> int:
    try:
        _make(base)
        base_fd = _open(base, str(base), None)
        try:
            _check(base, base_fd, {0, os.geteuid()})
            _mkdir(leaf, base_fd)
            fd = _open(base / leaf, leaf, base_fd)
        finally:
            os.close(base_fd)
        try:
            _own(base / leaf, fd)
        except BaseException:
            os.close(fd)
            raise
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
        raise SpoolUnavailableError(f"the spool directory {base} cannot be used: {reason}") from None
    return fd


def _make(base: Path) -> None:
    """Not `makedirs`, which gives the parents whatever the umask leaves."""
    for parent in base.parents:
        if parent.exists() and _writable_by_all(parent.stat()):
            raise SpoolUnavailableError(
                f"the spool directory {base} is not safe: anybody may replace it, since {parent} is writable by all"
                " and has no sticky bit"
            )
    for path in reversed([path for path in (base, *base.parents) if not os.path.lexists(path)]):
        _mkdir(str(path), None)


def _mkdir(path: str, dir_fd: int | None) -> None:
    try:
        os.mkdir(path, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return
    os.chmod(path, 0o700, dir_fd=dir_fd)  # whatever the umask took away


def _open(path: Path, name: str, dir_fd: int | None) -> int:
    if path.is_symlink():
        raise SpoolUnavailableError(f"the spool directory {path} is a symbolic link; name the directory itself")
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def _check(path: Path, fd: int, owners: set[int]) -> None:
    found = os.fstat(fd)
    if found.st_uid not in owners:
        raise SpoolUnavailableError(f"the spool directory {path} belongs to another user (uid {found.st_uid})")
    if _writable_by_all(found):
        raise SpoolUnavailableError(f"the spool directory {path} is not safe: writable by all, without the sticky bit")


def _writable_by_all(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX


def _own(path: Path, fd: int) -> None:
    _check(path, fd, {os.geteuid()})
    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o700:
        os.fchmod(fd, 0o700)
    if not os.access(path, os.W_OK | os.X_OK):
        raise SpoolUnavailableError(f"the spool directory {path} cannot be written")
