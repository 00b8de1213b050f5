"""The fastest way to compute is measured once for a bundle and a machine, and used."""

import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from bundle.manifest import Bundle, Manifest
from engines.cpu import openvino_compile, openvino_engine
from engines.cpu.fastest import measure_fastest, read_fastest
from engines.cpu.openvino_compile import GraphCompiler
from engines.cpu.openvino_engine import OpenVinoEngine

DEMO = Path(__file__).parents[3] / "bundles" / "demo"


class StoppedClock:
    """A clock that only ways move, each by its next time in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now_s

    def way(self, name: str, *seconds: float) -> Callable[[], object]:
        times = cycle(seconds)

        def run() -> None:
            self.order.append(name)
            self.now_s += next(times)

        return run


def measure(directory: Path, clock: StoppedClock, **options: Any) -> str:
    """Measure a default that takes 100 ms and another that takes 80 ms, or as given."""
    seconds = options.pop("seconds", {"default": [0.1], "other": [0.08]})
    ways = {name: clock.way(name, *times) for name, times in seconds.items()}
    return measure_fastest(
        directory, ways, question="layout", key="this machine", clock=clock, **options
    )


def test_the_fastest_is_found_and_remembered(tmp_path: Path) -> None:
    found = measure(tmp_path, StoppedClock())

    assert found == "other"
    assert read_fastest(tmp_path, question="layout", key="this machine") == "other"


def test_another_machine_and_another_question_are_measured_again(tmp_path: Path) -> None:
    measure(tmp_path, StoppedClock())

    assert read_fastest(tmp_path, question="layout", key="another machine") is None
    assert read_fastest(tmp_path, question="float type", key="this machine") is None


def test_nothing_is_remembered_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")

    found = measure(tmp_path, StoppedClock())

    assert found == "other"
    assert read_fastest(tmp_path, question="layout", key="this machine") is None


@pytest.mark.parametrize(("other_s", "expected"), [(0.089, "other"), (0.091, "default")])
def test_the_default_stays_unless_another_way_is_clearly_faster(
    tmp_path: Path, other_s: float, expected: str
) -> None:
    seconds = {"default": [0.1], "other": [other_s]}

    assert measure(tmp_path, StoppedClock(), seconds=seconds, margin=0.1) == expected
    assert read_fastest(tmp_path, question="layout", key="this machine") == expected


def test_ways_take_turns_and_neither_the_first_run_nor_one_slow_run_decides(tmp_path: Path) -> None:
    clock = StoppedClock()

    found = measure(
        tmp_path, clock, seconds={"default": [0.01, 0.1, 0.1, 0.1], "other": [9, 0.05, 9, 0.05]}
    )

    assert found == "other"
    assert clock.order == ["default", "other"] * 4


@pytest.mark.parametrize(("run_s", "num_rounds"), [(0.001, 16), (0.05, 10), (5, 4)])
def test_short_runs_are_repeated_more_often(tmp_path: Path, run_s: float, num_rounds: int) -> None:
    clock = StoppedClock()

    measure(tmp_path, clock, seconds={"default": [run_s], "other": [run_s]})

    assert len(clock.order) == 2 * num_rounds


def test_a_few_runs_that_are_fast_by_chance_do_not_decide(tmp_path: Path) -> None:
    lucky = [0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02, 0.02]
    seconds = {"default": [0.015], "other": lucky}

    assert measure(tmp_path, StoppedClock(), seconds=seconds) == "default"


@pytest.mark.parametrize(("limit_s", "num_runs", "expected"), [(1, 2, "default"), (9, 4, "other")])
def test_slow_ways_are_measured_only_within_the_limit(
    tmp_path: Path, limit_s: float, num_runs: int, expected: str
) -> None:
    clock = StoppedClock()

    found = measure(tmp_path, clock, seconds={"default": [4], "other": [2]}, limit_s=limit_s)

    assert (found, len(clock.order)) == (expected, num_runs)


@pytest.fixture
def open_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenVinoEngine]:
    """Open the demo's bundle in a precision, where the CPU has every type and one is fastest.

    What would be compiled in bf16 is compiled in float32: not every CPU knows more.
    """
    directory = tmp_path / "demo"
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache"))
    manifest = Manifest.load(DEMO)
    compile_as_asked = GraphCompiler._compile

    def compile_in_float32(self: GraphCompiler, options: dict[str, Any]) -> ov.CompiledModel:
        return compile_as_asked(self, {**options, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino_engine, "_precisions", lambda *_: {"fp32", "int8", "bf16"})
    monkeypatch.setattr(GraphCompiler, "_compile", compile_in_float32)

    def open_as(precision: str, fastest: str, **options: Any) -> OpenVinoEngine:
        def choose(_: Path, runs: dict[str, Callable[[], object]], **__: str) -> str:
            for run in runs.values():
                run()
            assert list(runs) == ["bf16", "f32"]
            return fastest

        monkeypatch.setattr(openvino_compile, "measure_fastest", choose)
        bundle = Bundle(directory, manifest.model_copy(update={"precision": precision}))
        return OpenVinoEngine(bundle, threads=1, graph="standard", **options)

    return open_as


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "fastest", "expected"),
    [
        ("fp32", "bf16", ("fp32", "fp32")),
        ("bf16", "bf16", ("bf16", "bf16")),
        ("bf16", "f32", ("fp32", "fp32")),
        ("int8", "bf16", ("int8", "bf16")),
        ("int8", "f32", ("int8", "fp32")),
    ],
)
def test_bundles_in_bf16_and_int8_are_run_in_what_is_faster_and_float32_as_it_is(
    open_as: Callable[..., OpenVinoEngine],
    precision: str,
    fastest: str,
    expected: tuple[str, str],
) -> None:
    engine = open_as(precision, fastest)

    assert (engine.info.precision, engine.info.float_type) == expected


@pytest.mark.slow
@pytest.mark.parametrize("float_type", ["bf16", "fp32"])
def test_what_is_asked_for_is_not_measured(
    open_as: Callable[..., OpenVinoEngine], float_type: str
) -> None:
    engine = open_as("bf16", "a type that there is not", float_type=float_type)

    assert engine.info.precision == engine.info.float_type == float_type
