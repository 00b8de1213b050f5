"""Memory that the service frees goes back to the system, where the C library is glibc."""

import ctypes

M_ARENA_MAX = -8  # of glibc's malloc.h


def share_one_heap() -> None:
    """Let all threads allocate from one heap; to be called before there are threads.

    By default every thread gets its own, of which `give_memory_back` leaves up to 64 MB at the end.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Return freed memory to the system; the C library would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
