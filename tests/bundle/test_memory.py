"""How much memory the process may use, as control groups of both versions say it."""

import os
from pathlib import Path

import pytest

from bundle.memory import allowed_memory_bytes

V1 = "31 24 0:27 /a /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n"
V2 = "30 24 0:26 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "group", "limits"),
    [
        (V2, "0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "1000000"}),
        (V2, "0::/a", {"a/memory.max": "1000000"}),
        (V1, "5:cpu,memory:/a/b", {"memory/b/memory.limit_in_bytes": "1000000"}),
        (V1, "5:memory:/elsewhere", {"memory/memory.limit_in_bytes": "1000000"}),
    ],
)
def test_the_least_limit_of_the_control_groups_counts(
    tmp_path: Path, mountinfo: str, group: str, limits: dict[str, str]
) -> None:
    files = {"proc/self/cgroup": group, "proc/self/mountinfo": mountinfo} | {
        f"sys/fs/cgroup/{name}": limit for name, limit in limits.items()
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n" if name == "proc/self/cgroup" else text)

    assert allowed_memory_bytes(tmp_path) == 1_000_000


def test_without_control_groups_it_is_the_memory_of_the_machine(tmp_path: Path) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    assert allowed_memory_bytes(tmp_path) == physical
