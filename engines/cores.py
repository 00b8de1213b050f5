"""How many cores this process may use: fewer than the machine has, in a container or under taskset.

A limit of CPU time does not show as fewer cores. A process with more threads than its quota has
cores is stopped for the rest of every period, all threads at once.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class _Mount(NamedTuple):
    """A hierarchy of control groups, where it can be seen."""

    root: Path  # the group that is seen at `point`
    point: Path
    is_unified: bool  # version 2 of control groups


def allowed_cores(file_system: Path = Path("/")) -> int:
    """Cores by affinity, or by the CPU quota of the control groups if that is less, rounded up."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min([cores, *(math.ceil(quota) for quota in _quotas(file_system))])


def _quotas(file_system: Path) -> Iterator[float]:
    """The quotas, in cores, of the process's groups and of all those that they lie in."""
    try:
        groups = (file_system / "proc/self/cgroup").read_text().splitlines()
        mounts = list(_mounts((file_system / "proc/self/mountinfo").read_text()))
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.is_unified == (not controllers):
                for directory in _directories(mount, Path(group)):
                    yield from _quota(file_system / directory.relative_to("/"), mount.is_unified)


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """The hierarchies that can limit CPU time, from the format of proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        place, _, source = line.partition(" - ")
        root, point = place.split()[3:5]
        kind, _, options = source.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield _Mount(Path(root), Path(point), is_unified=kind == "cgroup2")


def _directories(mount: _Mount, group: Path) -> Iterator[Path]:
    """Where the group and those that it lies in can be seen, the mount's own last.

    A container may see its own group as the root of the mount while it is told its name outside.
    """
    inside = group.relative_to(mount.root) if group.is_relative_to(mount.root) else Path()
    yield mount.point / inside
    yield from (mount.point / parent for parent in inside.parents)


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
