"""What was measured is shown, whatever cannot be made, opened or finished."""

import shutil
from pathlib import Path

import pytest

from benchmarks import bench_engine, engine_bundles
from benchmarks.bench_engine import Sample, run_rounds
from benchmarks.contestants import Task
from benchmarks.engine_bundles import bundle_path, make_bundles


@pytest.fixture
def task(toy_bundle: Path, tmp_path: Path) -> Task:
    """A bundle in fp32, in place of a large one."""
    shutil.copytree(toy_bundle, bundle_path(tmp_path, "base", precision="fp32"))
    return Task("base", 64, 64, threads=1, bundles=tmp_path)


@pytest.mark.slow
def test_engines_that_cannot_be_opened_are_left_out(
    task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["openvino", "ours-int8"]

    measured, is_whole = run_rounds(task, names, num_rounds=1, log=tmp_path / "log")

    assert is_whole
    assert {name: len(times) for name, times in measured.times.items()} == {"openvino": 1}
    assert "ours-int8 cannot be opened and is left out" in capfd.readouterr().err


class Interrupted:
    """A contestant; Ctrl-C comes in its second round."""

    output = None

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self._samples = iter([Sample(2.0, 1.0)])

    def sample(self) -> Sample:
        try:
            return next(self._samples)
        except StopIteration:
            raise KeyboardInterrupt from None

    def close(self) -> None:
        pass


def test_a_run_that_is_interrupted_keeps_its_rounds(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_engine, "Contestant", Interrupted)

    measured, is_whole = run_rounds(task, ["one", "other"], num_rounds=5, log=tmp_path / "log")

    assert not is_whole
    assert measured.times == {"one": [1.0], "other": [1.0]}
    assert len((tmp_path / "log").read_text().splitlines()) == 2


@pytest.mark.parametrize(("broken", "is_usable"), [("int8", True), ("fp32", False)])
def test_an_export_that_fails_leaves_out_what_depends_on_it(
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    is_usable: bool,
) -> None:
    made: list[str] = []

    def make(folder: Path, variant: str, precision: str) -> None:
        if precision == broken:
            raise RuntimeError("the graph differs")
        made.append(precision)

    monkeypatch.setattr(engine_bundles, "_make_bundle", make)

    assert make_bundles(task.bundles, "refine", precisions=["bf16", "int8"]) == is_usable
    assert made == (["fp32", "bf16"] if is_usable else [])
    assert f"refine-{broken} cannot be made and is left out: the graph differs" in caplog.text
