"""Preserves the stack of this thread's signal handlers while a library sets another one."""

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
    """Restore the thread's signal stack afterwards; does nothing except on Linux.

    OpenVINO's CPU plugin installs its own stack when it is loaded, and restores the previous one
    when it is unloaded. If the lifetimes of two plugins overlap, the first to be unloaded frees the
    stack that the other restores later, and the next signal kills the process.
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
