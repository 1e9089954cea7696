"""The directory of the spool: only this user can write to it, or it is not used."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from agentexec_otel._errors import AgentExecError


class SpoolError(AgentExecError):
    """The spool cannot take a record. The processor handles it; the application never sees it."""


class SpoolUnavailableError(SpoolError):
    """The directory cannot be used. The message says why, in one sentence."""


class SpoolFullError(SpoolError):
    """No room: the limit of the spool or of the disk is reached. Records already taken are safe."""


def default_directory(chosen: str | None = None) -> Path:
    """Return the chosen directory, else ``AGENTEXEC_SPOOL_DIR``, else the platform's folder for a user's state.

    Raises:
        SpoolUnavailableError: The user has no home directory.
    """
    from platformdirs import user_state_path

    chosen = chosen or os.environ.get("AGENTEXEC_SPOOL_DIR")
    try:
        return Path(chosen).expanduser().absolute() if chosen else user_state_path("agentexec-otel")
    except RuntimeError:
        raise SpoolUnavailableError(
            "this user has no home directory to keep the spool in; name one in AGENTEXEC_SPOOL_DIR"
        ) from None


class SpoolDirectory:
    """``base/leaf``, created with mode 0700.

    Every operation opens the directory again and checks it. No descriptor is kept, so the spool still works after
    something else has closed all descriptors of the process, or removed the directory.

    Raises:
        SpoolUnavailableError: The directory cannot be written, or others could tamper with it.
    """

    def __init__(self, base: Path, leaf: str) -> None:
        self._base = base
        self._leaf = leaf
        self.path = base / leaf
        try:
            with self.open():
                pass
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
            raise SpoolUnavailableError(f"the spool directory {base} cannot be used: {reason}") from None

    @contextmanager
    def open(self) -> Generator[int]:
        """Create the directory if it is missing, and check it. The descriptor is valid inside the block.

        Raises:
            OSError: It cannot be created or opened.
            SpoolUnavailableError: Others could tamper with it.
        """
        _make(self._base)
        with _opened(self._base, None, {0, os.geteuid()}) as base:
            _mkdir(self._leaf, base)
            with _opened(self.path, base, {os.geteuid()}) as fd:
                if stat.S_IMODE(os.fstat(fd).st_mode) != 0o700:
                    os.fchmod(fd, 0o700)
                if not os.access(self.path, os.W_OK | os.X_OK):
                    raise SpoolUnavailableError(f"the spool directory {self.path} cannot be written")
                yield fd

    def entries(self) -> list[tuple[str, os.stat_result]]:
        """List the files by name. Empty if the directory cannot be opened."""
        found: list[tuple[str, os.stat_result]] = []
        with suppress(OSError, SpoolError), self.open() as fd, os.scandir(fd) as files:
            for entry in files:
                with suppress(FileNotFoundError):
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return sorted(found)

    def remove(self, name: str) -> None:
        """Unlink a file if it exists."""
        with self.open() as fd, suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)

    def rename(self, old: str, new: str) -> None:
        """Rename a file if it exists."""
        with self.open() as fd, suppress(FileNotFoundError):
            os.rename(old, new, src_dir_fd=fd, dst_dir_fd=fd)

    def sync(self) -> None:
        """Bring the names of the files to the disk."""
        with self.open() as fd:
            os.fsync(fd)


def _make(base: Path) -> None:
    for parent in base.parents:
        if parent.exists() and _writable_by_all(parent.stat()):
            raise SpoolUnavailableError(
                f"the spool directory {base} is not safe: any user may replace it, since {parent} is writable by all"
                " and has no sticky bit"
            )
    # `os.makedirs` would leave the modes of the parents to the umask.
    for path in reversed([path for path in (base, *base.parents) if not os.path.lexists(path)]):
        _mkdir(str(path), None)


def _mkdir(path: str, dir_fd: int | None) -> None:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=dir_fd)
        os.chmod(path, 0o700, dir_fd=dir_fd)  # the umask may have removed bits


@contextmanager
def _opened(path: Path, parent: int | None, owners: set[int]) -> Generator[int]:
    if path.is_symlink():
        raise SpoolUnavailableError(f"the spool directory {path} is a symbolic link; name the directory itself")
    name = str(path) if parent is None else path.name
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        found = os.fstat(fd)
        if found.st_uid not in owners:
            raise SpoolUnavailableError(f"the spool directory {path} belongs to another user (uid {found.st_uid})")
        if _writable_by_all(found):
            raise SpoolUnavailableError(
                f"the spool directory {path} is not safe: writable by all, without the sticky bit"
            )
        yield fd
    finally:
        os.close(fd)


def _writable_by_all(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
