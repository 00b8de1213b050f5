"""How much memory this process may use; in a container, less than the machine has."""

import os
from collections.abc import Iterator
from pathlib import Path

from bundle.control_groups import control_groups


def allowed_memory_bytes(file_system: Path = Path("/")) -> int:
    """The memory of the machine, or the limit of the control groups if that is lower."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(file_system)])


def _limits(file_system: Path) -> Iterator[int]:
    for group in control_groups("memory", file_system):
        name = "memory.max" if group.is_unified else "memory.limit_in_bytes"
        try:
            limit = (group.directory / name).read_text().strip()
        except OSError:  # the root has none
            continue
        if limit != "max":
            yield int(limit)
