"""Where the spool may be, and who may read it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentexec_otel.export.spool import Spool, SpoolUnavailableError, default_directory
from tests.unit.spool_kit import drain, fill, fork, segment_files, umask

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="axspool-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def refusal(directory: Path) -> str:
    with pytest.raises(SpoolUnavailableError) as caught:
        Spool(directory, identity="db")
    return str(caught.value)


def as_nobody(work: Callable[[], object]) -> None:
    """Run `work` as a user who owns nothing."""

    def drop() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        work()

    fork(drop).join()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    """Directories 0700, files 0600: also the parents that had to be made."""
    with umask(mask):
        spool = Spool(tmp_path / "state" / "agentexec-otel", identity="db")
        spool.append(b"one")
    made = [tmp_path / "state", tmp_path / "state" / "agentexec-otel", spool.path]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 3
    assert [stat.S_IMODE(path.stat().st_mode) for path in segment_files(spool)] == [0o600]
    spool.close()


def test_a_directory_of_ours_that_became_readable_is_closed_again(tmp_path: Path) -> None:
    """Messages may be confidential; the folder around it is the user's business."""
    tmp_path.chmod(0o755)
    path = Spool(tmp_path, identity="db").path
    path.chmod(0o755)
    Spool(tmp_path, identity="db")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """Somebody may have put it there, at either level."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert "symbolic link" in refusal(tmp_path / "link")
    path = Spool(tmp_path / "real", identity="db").path
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refusal(tmp_path / "real")


def test_a_directory_that_anybody_may_write_is_refused_without_the_sticky_bit(tmp_path: Path) -> None:
    """As is one below such a directory; like /tmp, with the bit, it is fine."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "writable by all" in refusal(tmp_path / "open")
    assert "writable by all" in refusal(tmp_path / "open" / "below")
    assert "writable by all" in refusal(tmp_path / "open" / "far" / "below")
    assert list((tmp_path / "open").iterdir()) == []
    (tmp_path / "open").chmod(0o1777)
    Spool(tmp_path / "open", identity="db").append(b"one")
    Spool(tmp_path / "open" / "below", identity="db").append(b"one")


@root_only
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """At either level: who owns it can replace the files in it."""
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    assert "belongs to another user (uid 65534)" in refusal(tmp_path / "theirs")
    os.chown(tmp_path / "theirs", 0, 0)
    path = Spool(tmp_path / "theirs", identity="db").path
    os.chown(path, NOBODY, NOBODY)
    assert "belongs to another user" in refusal(tmp_path / "theirs")


@root_only
def test_a_volume_of_root_that_our_group_may_write_is_used(public: Path) -> None:
    """As container volumes are handed out; what is kept in it is ours alone."""
    os.chown(public, 0, NOBODY)
    public.chmod(0o2775)

    def use() -> None:
        spool = Spool(public, identity="db")
        spool.append(b"one")
        found = spool.path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (NOBODY, 0o700)

    as_nobody(use)


@root_only
@pytest.mark.parametrize("mode", [0o555, 0o755])
def test_a_directory_that_we_may_not_write_is_refused_in_one_sentence(public: Path, mode: int) -> None:
    """Read-only for its owner, or root's: no file is left, and the reason is said."""
    if mode == 0o555:
        os.chown(public, NOBODY, NOBODY)
    public.chmod(mode)

    def use() -> None:
        assert refusal(public) == f"the spool directory {public} cannot be used: Permission denied"
        assert "Permission denied" in refusal(public / "below")

    as_nobody(use)
    assert list(public.iterdir()) == []


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    """Not a directory, in so many words."""
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file").endswith("cannot be used: Not a directory")
    assert refusal(tmp_path / "file" / "below").endswith("cannot be used: Not a directory")


def test_segments_are_not_followed_through_links(tmp_path: Path) -> None:
    """A name that exists, as a link or otherwise, is never opened for writing."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    spool = Spool(tmp_path / "spool", identity="db")
    spool.append(b"one")
    (path,) = segment_files(spool)
    for number in (1, 2):
        path.with_name(f"{path.stem[:-6]}{number + 1:06d}.seg").symlink_to(target)
    spool.close()
    assert drain(spool) == [b"one"]
    assert target.read_bytes() == b"precious"


# -- default ----------------------------------------------------------------------------------------------------


def test_the_default_directory_is_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Or what AGENTEXEC_SPOOL_DIR says; relative to the directory of the moment, which may change later."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("AGENTEXEC_SPOOL_DIR", raising=False)
    assert default_directory() == tmp_path / "agentexec-otel"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTEXEC_SPOOL_DIR", "relative")
    assert default_directory() == tmp_path / "relative"
    monkeypatch.setenv("AGENTEXEC_SPOOL_DIR", "~/spool")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / "spool"


@root_only
def test_a_user_without_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container under an arbitrary uid: no folder named ~ is made."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def ask() -> None:
        os.setuid(54321)
        for chosen in ("", "~/spool"):
            os.environ["AGENTEXEC_SPOOL_DIR"] = chosen
            with pytest.raises(SpoolUnavailableError, match="AGENTEXEC_SPOOL_DIR"):
                default_directory()

    fork(ask).join()


# -- a disk that is full, or read-only --------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k,mode=700", "none", path], check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield path
    subprocess.run(["umount", path], check=True)


@root_only
def test_a_full_disk_refuses_records_and_damages_none(disk: Path) -> None:
    """Records accepted before and after are all sound; a part that did not fit is cut off; room is used once there."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 40_000)
    spool = Spool(disk, identity="db", segment_bytes=30_000)
    payload = b"y" * 999
    first = len(fill(spool, payload))
    assert 20 < first < 60
    assert fill(spool, payload) == []
    ballast.unlink()
    second = len(fill(spool, payload))
    assert second > 20
    assert len(spool.read(limit=1 << 20)) > 0
    spool.close()
    later = Spool(disk, identity="db")
    assert drain(later) == [payload] * (first + second)
    assert list(later.path.iterdir()) == []


@root_only
def test_a_read_only_file_system_is_refused_in_one_sentence(disk: Path) -> None:
    """As in a hardened container: whether the directory is there already or not."""
    Spool(disk / "there", identity="db")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert refusal(disk / "fresh").endswith("cannot be used: Read-only file system")
    assert refusal(disk / "there").endswith("cannot be written")
