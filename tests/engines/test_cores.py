import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.cores import allowed_cores, spread

UNIFIED = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
SEPARATE = (
    "25 23 0:5 / /proc rw - proc proc rw\n"
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 {root} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Path]:
    """Make a file system with control groups; returns its root."""

    def machine(mounts: str, groups: str, files: dict[str, str], root: str = "/") -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/mountinfo").write_text(mounts.format(root=root))
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        return tmp_path

    return machine


def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert allowed_cores(tmp_path) == 8


def test_without_a_quota_affinity_decides(machine: Callable[..., Path]) -> None:
    root = machine(UNIFIED, "0::/\n", {"cpu.max": "max 100000"})

    assert allowed_cores(root) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_a_quota_is_rounded_up_to_cores(
    machine: Callable[..., Path], quota: str, cores: int
) -> None:
    root = machine(UNIFIED, "0::/\n", {"cpu.max": quota})

    assert allowed_cores(root) == cores


def test_the_smallest_quota_on_the_way_up_counts(machine: Callable[..., Path]) -> None:
    files = {
        "kubepods/cpu.max": "300000 100000",
        "kubepods/pod1/cpu.max": "max 100000",
        "kubepods/pod1/box/cpu.max": "500000 100000",
    }

    root = machine(UNIFIED, "0::/kubepods/pod1/box\n", files)

    assert allowed_cores(root) == 3


def test_a_container_may_see_its_own_group_as_the_root(machine: Callable[..., Path]) -> None:
    root = machine(UNIFIED, "0::/docker/abc\n", {"cpu.max": "200000 100000"}, root="/docker/abc")

    assert allowed_cores(root) == 2


def test_a_container_may_be_told_a_name_that_only_holds_outside(
    machine: Callable[..., Path],
) -> None:
    root = machine(UNIFIED, "0::/\n", {"cpu.max": "200000 100000"}, root="/../elsewhere")

    assert allowed_cores(root) == 2


@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", 8)])
def test_version_1_keeps_quota_and_period_apart(
    machine: Callable[..., Path], quota: str, cores: int
) -> None:
    files = {
        "cpu,cpuacct/box/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    }

    root = machine(
        SEPARATE, "3:cpuset:/box\n4:cpu,cpuacct:/box\n1:name=systemd:/box\n0::/\n", files
    )

    assert allowed_cores(root) == cores


def test_a_system_without_affinity_counts_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)

    assert allowed_cores(tmp_path) == 5


def test_threads_in_turn_may_use_one_half_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, cores: taken.append(cores), raising=False
    )

    take_half = spread()
    for _ in range(3):
        take_half()

    assert taken == [[0, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4, 6]]


def test_one_core_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)

    spread()()


def test_cores_that_were_taken_away_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, cores: list[int]) -> None:
        raise OSError(f"{cores} are not allowed")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)

    spread()()
