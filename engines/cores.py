"""The cores that this process may use: in a container or under taskset, fewer than there are.

A limit on CPU time does not show as fewer cores. A process with more threads than its quota has
cores is stopped, with all its threads, for the rest of every period.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from bundle.control_groups import control_groups


def allowed_cores(file_system: Path = Path("/")) -> int:
    """The cores allowed by affinity, or by the CPU quota (rounded up) if that is lower."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min([cores, *(math.ceil(quota) for quota in _quotas(file_system))])


def _quotas(file_system: Path) -> Iterator[float]:
    """The quotas of the process's groups and all their parents, in cores."""
    for group in control_groups("cpu", file_system):
        yield from _quota(group.directory, group.is_unified)


def _quota(directory: Path, is_unified: bool) -> Iterator[float]:
    try:
        if is_unified:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
    except OSError:  # the root has none
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)


def spread() -> Callable[[], None]:
    """What the threads of a pool call first, so that they are not all woken on one core.

    The first, third, ... thread may use the first, third, ... core, the others the rest. The kernel
    of a virtual machine with 2 cores woke both threads that decode on the core of the event loop:
    of 24 ms in which the images of a batch were decoded, the other was idle for 23.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        return lambda: None
    turns = itertools.cycle((cores[::2], cores[1::2]))

    def take_half() -> None:
        with suppress(OSError):  # they were taken away meanwhile
            os.sched_setaffinity(0, next(turns))

    return take_half
