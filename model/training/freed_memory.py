"""Memory that a step on a CPU frees, kept for the next step."""

import ctypes

# From glibc's malloc.h; the second is the most that it would choose by itself.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, LARGEST = (1 << 31) - 1, 1 << 25


def keep_freed_memory() -> None:
    """Have the C library keep what this process frees, if it is glibc.

    By default it returns the end of its memory to the system whenever that is free, and a training
    step then has tens of thousands of page faults.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, LARGEST)
        adjust(M_TRIM_THRESHOLD, NEVER)
