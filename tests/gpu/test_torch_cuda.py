"""The engine torch-cuda on a GPU, against PyTorch, and against itself however batches are run."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.manifest import Bundle, Precision
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch
from engines.base import Engine
from engines.load import GpuOptions, open_engine
from engines.self_check import require_known_answers
from export.graph.half_precision import add_half_graph
from export.judge.verify import photographs, verify
from model.config import Variant
from plugins.gpu_kernels import gpu_kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_torch_gpu")]

DEMO = Path(__file__).parents[2] / "bundles" / "demo"
Inputs = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def _torch_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("left out, as PyTorch has no CUDA here: the engine torch-cuda")
    if gpu_kernels() is None:
        pytest.skip("left out, without nvcc and without Triton: the engine torch-cuda")


@pytest.fixture(params=[0, 16], ids=["launched", "CUDA graphs"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = open_engine(
        Bundle.load(DEMO), engine="torch-cuda", gpu=GpuOptions(max_graphs=request.param)
    )
    yield engine
    engine.close()


def batch_of(*sizes: tuple[int, int]) -> Inputs:
    photo = photographs()[0]
    return pad_batch([np.ascontiguousarray(photo[:height, :width]) for height, width in sizes])


BATCHES = [batch_of(*sizes) for sizes in ([(96, 128)], [(128, 96)] * 3, [(96, 128), (80, 100)])]


def is_same(one: RawOutput, other: RawOutput) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in one._fields)


@pytest.mark.parametrize("variant", Variant)
def test_every_variant_detects_what_pytorch_does(exported: Callable, variant: Variant) -> None:
    small = exported(variant)
    engine = open_engine(Bundle(small.directory, small.manifest), engine="torch-cuda")

    reports = verify(small.model, engine, preprocess=small.manifest.preprocess, images=[])

    engine.close()
    assert all(report["passed"] for report in reports)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_it_gives_the_known_answers(tmp_path: Path, precision: Precision) -> None:
    shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("cache"))
    bundle = Bundle.load(tmp_path / "demo").with_manifest(precision=precision)
    if precision != "fp32":
        bundle = add_half_graph(bundle, precision)
    engine = open_engine(bundle, engine="torch-cuda")

    outcomes, _ = require_known_answers(engine, bundle, at_full_size=True)

    engine.close()
    assert engine.info.precision == precision
    assert all(outcome.has_passed for outcome in outcomes)


def test_a_batch_gives_the_same_bits_launched_captured_and_replayed(engine: Engine) -> None:
    first = [engine.run(*batch) for batch in BATCHES]

    for _ in range(3):
        assert all(map(is_same, (engine.run(*batch) for batch in BATCHES), first))


def test_two_threads_get_what_one_gets(engine: Engine) -> None:
    alone = [engine.run(*batch) for batch in BATCHES]

    with ThreadPoolExecutor(engine.runs_at_once) as pool:
        together = list(pool.map(lambda batch: engine.run(*batch), BATCHES * 50))

    assert engine.runs_at_once == 2
    assert all(map(is_same, together, alone * 50))


def test_shapes_beyond_the_number_of_graphs_take_turns(engine: Engine) -> None:
    few = open_engine(Bundle.load(DEMO), engine="torch-cuda", gpu=GpuOptions(max_graphs=1))
    alone = [engine.run(*batch) for batch in BATCHES]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda place: few.run(*BATCHES[place // 3 % 3]), range(36)))

    few.close()
    assert all(is_same(output, alone[place // 3 % 3]) for place, output in enumerate(found))
