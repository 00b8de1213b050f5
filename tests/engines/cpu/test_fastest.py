"""The fastest way to compute is measured once for a bundle and a machine, and used."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from bundle.manifest import Bundle, Manifest
from engines.cpu import openvino_engine
from engines.cpu.fastest import measure_fastest, read_fastest
from engines.cpu.openvino_engine import OpenVinoEngine

DEMO = Path(__file__).parents[3] / "bundles" / "demo"


def ways(**seconds: float) -> dict[str, Callable[[], object]]:
    return {way: partial(time.sleep, length) for way, length in seconds.items()}


def test_the_fastest_is_found_and_remembered(tmp_path: Path) -> None:
    found = measure_fastest(tmp_path, ways(slow=0.05, fast=0.001, medium=0.02), key="this machine")

    assert found == "fast"
    assert read_fastest(tmp_path, key="this machine") == "fast"


def test_another_machine_measures_again(tmp_path: Path) -> None:
    measure_fastest(tmp_path, ways(one=0.0), key="this machine")

    assert read_fastest(tmp_path, key="another machine") is None


def test_nothing_is_remembered_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")

    found = measure_fastest(tmp_path, ways(slow=0.05, fast=0.001), key="this machine")

    assert found == "fast"
    assert read_fastest(tmp_path, key="this machine") is None


@pytest.fixture
def open_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenVinoEngine]:
    """Open the demo's bundle in a precision, where the CPU has every type and one is fastest.

    What would be compiled in bf16 is compiled in float32: not every CPU knows more.
    """
    directory = tmp_path / "demo"
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache"))
    manifest = Manifest.load(DEMO)
    compile_as_asked = openvino_engine._compile

    def compile_in_float32(
        core: ov.Core, path: Path, properties: dict[str, Any]
    ) -> ov.CompiledModel:
        return compile_as_asked(core, path, {**properties, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino_engine, "_precisions", lambda *_: {"fp32", "int8", "bf16"})
    monkeypatch.setattr(openvino_engine, "_compile", compile_in_float32)

    def open_as(precision: str, fastest: str, **options: Any) -> OpenVinoEngine:
        def choose(_: Path, runs: dict[str, Callable[[], object]], *, key: str) -> str:
            for run in runs.values():
                run()
            assert list(runs) == ["bf16", "f32"]
            return fastest

        monkeypatch.setattr(openvino_engine, "measure_fastest", choose)
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
