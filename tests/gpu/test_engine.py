"""Plans of whole models on the GPU against PyTorch and against the engine of a CPU."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Manifest
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch, prepare
from engines.base import Engine
from engines.load import GpuOptions, open_engine
from export.build import plan_bundle, verify_plan
from export.graph.tensorrt_plan import find_planner
from export.half import halve_bundle
from export.judge.verify import photographs
from model.config import Variant
from model.data.digits import DigitsDataset
from model.evaluation.evaluation import evaluate

pytestmark = pytest.mark.gpu

DEMO = Path(__file__).parents[2] / "bundles" / "demo"
# Most that AP may differ from that on a CPU.
AP_DIFFERENCE = {"fp32": 0.002, "fp16": 0.005}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo with a plan, by precision."""
    directories = {}
    for precision in AP_DIFFERENCE:
        directory = tmp_path_factory.mktemp("planned") / precision
        shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache"))
        manifest = Manifest.load(directory)
        planner = find_planner([], manifest.preprocess)
        if precision == "fp32":
            plan_bundle(directory, manifest, planner).save(directory)
        else:
            halve_bundle(directory, manifest, photographs(), planner)
        directories[precision] = directory
    return directories


@pytest.fixture(scope="module")
def cpu_ap() -> float:
    manifest, engine = open_engine(DEMO, engine="onnxruntime")
    return average_precision(manifest, engine)


def average_precision(manifest: Manifest, engine: Engine) -> float:
    """AP on the demo's validation set; closes the engine."""
    try:
        data, classes = DigitsDataset("val"), manifest.classes
        found = evaluate(engine.run, data, preprocess=manifest.preprocess, classes=classes)
        return found.numbers["AP"]
    finally:
        engine.close()


def open_plan(directory: Path, max_graphs: int) -> tuple[Manifest, Engine]:
    gpu = GpuOptions(max_graphs=max_graphs)
    return open_engine(directory, engine="tensorrt", gpu=gpu)


def batch(manifest: Manifest, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first photographs as images and padding mask."""
    images = [prepare(photo, manifest.preprocess)[0] for photo in photographs()[:count]]
    return pad_batch(images, manifest.preprocess.min_side)


def is_same(one: RawOutput, other: RawOutput) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in one._fields)


def run_often(engine: Engine, inputs: tuple[np.ndarray, np.ndarray]) -> list[RawOutput]:
    return [engine.run(*inputs) for _ in range(50)]


@pytest.mark.parametrize("variant", Variant)
def test_the_plan_of_every_variant_detects_what_pytorch_does(
    exported: Callable, tmp_path: Path, variant: Variant
) -> None:
    small = exported(variant)
    directory = Path(shutil.copytree(small.directory, tmp_path / "bundle"))
    planner = find_planner([], small.manifest.preprocess)

    manifest = plan_bundle(directory, small.manifest, planner)
    reports = verify_plan(small.model, directory, manifest, planner, [])

    assert sum(report["passed"] for report in reports) == 4  # others were tried once more


@pytest.mark.parametrize("precision", AP_DIFFERENCE)
def test_ap_is_that_of_a_cpu_and_of_the_checkpoint(
    planned: dict[str, Path], cpu_ap: float, precision: str
) -> None:
    manifest, engine = open_plan(planned[precision], max_graphs=0)

    ap = average_precision(manifest, engine)

    assert engine.info.precision == precision
    assert ap == pytest.approx(cpu_ap, abs=AP_DIFFERENCE[precision])
    assert ap == pytest.approx(manifest.metrics["AP"], abs=AP_DIFFERENCE[precision])


@pytest.mark.parametrize("precision", AP_DIFFERENCE)
def test_a_cuda_graph_detects_what_plain_launches_do(
    planned: dict[str, Path], precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, plain = open_plan(planned[precision], max_graphs=0)
    expected = {count: plain.run(*batch(manifest, count)) for count in (1, 3)}
    plain.close()

    with caplog.at_level(logging.WARNING):
        _, captured = open_plan(planned[precision], max_graphs=8)
        # The first batch of a shape is launched, the second captured, the third replayed.
        found = [(count, captured.run(*batch(manifest, count))) for count in (1, 3) * 3]
        captured.close()

    assert all(is_same(output, expected[count]) for count, output in found)
    assert "without CUDA graphs" not in caplog.text


def test_two_engines_run_at_once_in_one_process(planned: dict[str, Path]) -> None:
    opened = [open_plan(directory, max_graphs=2) for directory in planned.values()]
    inputs = batch(opened[0][0], 2)
    alone = [engine.run(*inputs) for _, engine in opened]

    with ThreadPoolExecutor(len(opened)) as pool:
        runs = [pool.submit(run_often, engine, inputs) for _, engine in opened]
        together = [run.result() for run in runs]
    for _, engine in opened:
        engine.close()

    for expected, outputs in zip(alone, together, strict=True):
        assert all(is_same(output, expected) for output in outputs)
