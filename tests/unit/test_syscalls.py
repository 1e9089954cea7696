"""System calls that keep the interpreter lock do what those of `os` do."""

import errno
import os
from pathlib import Path

import pytest

from agentexec_otel._syscalls import random_48, write


def test_write_appends_and_counts(tmp_path: Path) -> None:
    """Bytes of any kind, a NUL among them, arrive as they are."""
    path = tmp_path / "file"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        assert write(fd, b"one\0two") == 7
        assert write(fd, b"\xff" * 1000) == 1000
    finally:
        os.close(fd)
    assert path.read_bytes() == b"one\0two" + b"\xff" * 1000


def test_write_raises_what_the_system_says() -> None:
    """The error has the number and the text of the failed call."""
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as failed:
            write(reading, b"x")
    finally:
        os.close(reading)
    assert failed.value.errno == errno.EBADF


def test_random_numbers_have_48_bits() -> None:
    """Each bit is sometimes 0 and sometimes 1, and no number comes twice."""
    numbers = [random_48() for _ in range(10_000)]
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) < 1 << 48
    ones = [sum(number >> bit & 1 for number in numbers) for bit in range(48)]
    assert all(4_000 < count < 6_000 for count in ones)
