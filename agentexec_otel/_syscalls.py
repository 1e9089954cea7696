"""System calls that keep the interpreter lock.

`os.write` and `os.urandom` release it. A caller in a loop then hands the interpreter to the writer thread, and waits
until it gets it back. With these two, the p99 of `update()` is a third or less (`benchmarks --only caller`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from errno import EINTR
from typing import Any, Final

_SIX_BYTES: Final = (1 << 48) - 1


def _write_with(libc: Any, ctypes: Any) -> Callable[[int, bytes], int]:
    call = libc.write
    call.argtypes, call.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_ssize_t

    def write(fd: int, data: bytes) -> int:
        while (written := call(fd, data, len(data))) < 0:
            number = ctypes.get_errno()
            if number != EINTR:
                raise OSError(number, os.strerror(number))
        return int(written)

    return write


def _random_with(libc: Any, ctypes: Any) -> Callable[[], int]:
    call, value = libc.getrandom, ctypes.c_uint64()
    call.restype = ctypes.c_ssize_t
    # Arguments that are made once take half of the time. A thread that comes between the call and the read replaces
    # the value by another random one, so two threads may get the same.
    address, size, flags = ctypes.c_void_p(ctypes.addressof(value)), ctypes.c_size_t(8), ctypes.c_uint(0)
    if call(address, size, flags) != 8:
        return _random_48

    def random_48() -> int:
        call(address, size, flags)  # Once it has worked, it does not fail.
        return value.value & _SIX_BYTES  # type: ignore[no-any-return]

    return random_48


def _random_48() -> int:
    return int.from_bytes(os.urandom(6), "big")


write: Callable[[int, bytes], int] = os.write
"""`os.write`. Blocks every thread of the process while the disk blocks: the caller has to notice that."""

random_48: Callable[[], int] = _random_48
"""48 random bits of the operating system. Two threads at the same moment may get the same ones."""

if os.name == "posix":
    # Without ctypes, and where the C library has no such function, the calls stay those of `os`.
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        write = _write_with(ctypes.PyDLL(None, use_errno=True), ctypes)
        if sys.platform == "linux":
            random_48 = _random_with(ctypes.PyDLL(None), ctypes)
