"""The control groups that limit this process: its own, and their parents."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """A control group, and where its limits can be read."""

    directory: Path
    is_unified: bool  # version 2 of control groups


class _Mount(NamedTuple):
    """A mounted hierarchy of control groups."""

    root: Path  # the group that is seen at `point`
    point: Path
    is_unified: bool


def control_groups(controller: str, file_system: Path = Path("/")) -> Iterator[ControlGroup]:
    """The groups whose limits on one controller (`cpu`, `memory`) apply to this process."""
    try:
        groups = (file_system / "proc/self/cgroup").read_text().splitlines()
        mounts = list(_mounts(controller, (file_system / "proc/self/mountinfo").read_text()))
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.is_unified == (not controllers):
                for directory in _directories(mount, Path(group)):
                    seen = file_system / directory.relative_to("/")
                    yield ControlGroup(seen, mount.is_unified)


def _mounts(controller: str, mountinfo: str) -> Iterator[_Mount]:
    """The hierarchies of a controller, from the format of proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        place, _, source = line.partition(" - ")
        root, point = place.split()[3:5]
        kind, _, options = source.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield _Mount(Path(root), Path(point), is_unified=kind == "cgroup2")


def _directories(mount: _Mount, group: Path) -> Iterator[Path]:
    """Directories of the group and its parents, ending with the mount itself.

    A container may see its group as the root of the mount but know it by its name outside.
    """
    inside = group.relative_to(mount.root) if group.is_relative_to(mount.root) else Path()
    yield mount.point / inside
    yield from (mount.point / parent for parent in inside.parents)
