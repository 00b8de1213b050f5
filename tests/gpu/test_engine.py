"""Plans of whole models on the GPU against PyTorch and against the engine of a CPU."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bundle.layout import REPORT_FILE
from bundle.manifest import Bundle, Manifest, Precision
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch, prepare
from engines.base import Engine
from engines.load import GpuOptions, open_engine
from export.graph.tensorrt_plan import add_plan, find_planner
from export.judge.verify import photographs
from export.precisions import Materials
from export.recipe import make_bundle
from model.config import Variant
from model.data.digits import DigitsDataset
from model.evaluation.evaluation import evaluate

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

DEMO = Path(__file__).parents[2] / "bundles" / "demo"
# Most that AP may differ from that on a CPU.
AP_DIFFERENCE: dict[Precision, float] = {"fp32": 0.002, "fp16": 0.005}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The demo with a plan, by precision."""
    directories = {}
    demo = Bundle.load(DEMO)
    for precision in AP_DIFFERENCE:
        directory = tmp_path_factory.mktemp("planned") / precision
        planner = find_planner([], demo.manifest.preprocess)
        if precision == "fp32":  # whose checkpoint is not here to judge the plan by
            shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache"))
            add_plan(Bundle.load(directory), planner).save()
        else:
            materials = Materials(demo, planner=planner)
            make_bundle(materials, directory, precision=precision, report={})
        directories[precision] = directory
    return directories


@pytest.fixture(scope="module")
def cpu_ap() -> float:
    bundle = Bundle.load(DEMO)
    return average_precision(bundle.manifest, open_engine(bundle, engine="onnxruntime"))


def average_precision(manifest: Manifest, engine: Engine) -> float:
    """AP on the demo's validation set; closes the engine."""
    try:
        data, classes = DigitsDataset("val"), manifest.classes
        found = evaluate(engine.run, data, preprocess=manifest.preprocess, classes=classes)
        return found.numbers["AP"]
    finally:
        engine.close()


def open_plan(directory: Path, max_graphs: int) -> tuple[Manifest, Engine]:
    bundle, gpu = Bundle.load(directory), GpuOptions(max_graphs=max_graphs)
    return bundle.manifest, open_engine(bundle, engine="tensorrt", gpu=gpu)


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
    exact = Bundle(small.directory, small.manifest)
    planner = find_planner([], small.manifest.preprocess)
    materials = Materials(exact, planner=planner, model=small.model)

    make_bundle(materials, tmp_path / "bundle", precision="fp32", report={})

    reports = json.loads((tmp_path / "bundle" / REPORT_FILE).read_text())["plan"]
    assert sum(report["passed"] for report in reports) == 4  # others were tried once more


@pytest.mark.parametrize("precision", AP_DIFFERENCE)
def test_ap_is_that_of_a_cpu_and_of_the_checkpoint(
    planned: dict[Precision, Path], cpu_ap: float, precision: Precision
) -> None:
    manifest, engine = open_plan(planned[precision], max_graphs=0)

    ap = average_precision(manifest, engine)

    assert engine.info.precision == precision
    assert ap == pytest.approx(cpu_ap, abs=AP_DIFFERENCE[precision])
    assert ap == pytest.approx(manifest.metrics["AP"], abs=AP_DIFFERENCE[precision])


@pytest.mark.parametrize("precision", AP_DIFFERENCE)
def test_a_cuda_graph_detects_what_plain_launches_do(
    planned: dict[Precision, Path], precision: Precision, caplog: pytest.LogCaptureFixture
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


def test_two_engines_run_at_once_in_one_process(planned: dict[Precision, Path]) -> None:
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
