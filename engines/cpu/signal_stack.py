"""The stack that this thread's signal handlers run on, kept while a library sets another one."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2) on Linux."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("num_bytes", ctypes.c_size_t),
    )


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put the thread's signal stack back afterwards; does nothing on other systems than Linux.

    OpenVINO's CPU plugin sets a stack of its own when it is loaded, and the one that it found when
    it is unloaded. Of two that overlap, the first to go frees the stack that the other puts back
    later, and the next signal ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    c_library = ctypes.CDLL(None)
    found = _Stack()
    c_library.sigaltstack(None, ctypes.byref(found))
    try:
        yield
    finally:
        c_library.sigaltstack(ctypes.byref(found), None)
