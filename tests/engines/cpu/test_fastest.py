"""The fastest way to compute is measured once for a bundle and a machine, and used."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bundle.manifest import Bundle, Manifest
from engines.cpu import openvino_engine
from engines.cpu.fastest import measure_fastest, read_fastest
from engines.cpu.openvino_engine import OpenVinoEngine
from engines.self_check import require_known_answers

DEMO = Path(__file__).parents[3] / "bundles" / "demo"


def ways(**seconds: float) -> dict[str, Callable[[], object]]:
    return {way: partial(time.sleep, length) for way, length in seconds.items()}


def test_the_fastest_is_found_and_remembered(tmp_path: Path) -> None:
    found = measure_fastest(tmp_path, ways(slow=0.05, fast=0.001, medium=0.02), key="this machine")

    assert found == "fast"
    assert read_fastest(tmp_path, key="this machine") == "fast"


def test_another_machine_measures_anew(tmp_path: Path) -> None:
    measure_fastest(tmp_path, ways(one=0.0), key="this machine")

    assert read_fastest(tmp_path, key="another machine") is None


def test_nothing_is_remembered_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")

    found = measure_fastest(tmp_path, ways(slow=0.05, fast=0.001), key="this machine")

    assert found == "fast"
    assert read_fastest(tmp_path, key="this machine") is None


@pytest.fixture
def open_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenVinoEngine]:
    """Open the demo's bundle as one of a precision, on a CPU that has every type."""
    directory = tmp_path / "demo"
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache"))
    manifest = Manifest.load(DEMO)
    monkeypatch.setattr(openvino_engine, "_precisions", lambda *_: {"fp32", "int8", "bf16"})

    def open_as(precision: str, fastest: str) -> OpenVinoEngine:
        measured = []

        def choose(_: Path, runs: dict[str, Callable[[], object]], *, key: str) -> str:
            measured.append(key)
            assert list(runs) == ["bf16", "f32"]
            for run in runs.values():
                run()
            return fastest

        monkeypatch.setattr(openvino_engine, "measure_fastest", choose)
        bundle = Bundle(directory, manifest.model_copy(update={"precision": precision}))
        engine = OpenVinoEngine(bundle, threads=1, graph="standard")
        assert len(measured) == (precision == "bf16")
        return engine

    return open_as


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_faster_in_float32_is_run_in_float32(
    open_as: Callable[..., OpenVinoEngine], precision: str
) -> None:
    engine = open_as(precision, "f32")

    assert engine.info.float_type == "fp32"
    assert engine.info.precision == "fp32"
    require_known_answers(engine, Bundle(DEMO, Manifest.load(DEMO)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_what_is_faster_in_bf16_is_run_in_bf16(
    open_as: Callable[..., OpenVinoEngine], precision: str
) -> None:
    engine = open_as(precision, "bf16")

    assert engine.info.float_type == "bf16"
    assert engine.info.precision == precision
