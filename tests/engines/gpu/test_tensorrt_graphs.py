"""CUDA graphs, contexts and memory of the TensorRT engine."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.tensorrt_engine import TensorRTEngine
from tests.engines.gpu.planned import LANDSCAPE, PORTRAIT, assert_alike, batch_of, load
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT


def test_a_shape_has_its_graph_from_the_second_run_on(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    engine = load(bundle, trt)
    batch = batch_of((50, 70))

    assert [graphs_after(engine, cuda, batch) for _ in range(3)] == [2, 3, 3]  # 2 from warm-up
    assert engine.num_captures == 3
    engine.close()


def graphs_after(engine: TensorRTEngine, cuda: FakeCuda, batch: tuple) -> int:
    engine.run(*batch)
    return cuda.num_graphs


def test_graphs_and_contexts_are_bounded(bundle: Path, trt: FakeTensorRT, cuda: FakeCuda) -> None:
    engine = load(bundle, trt, max_graphs=3)
    for width in (40, 50, 60, 70, 80):
        for _ in range(2):
            engine.run(*batch_of((50, width)))

    assert cuda.num_graphs == len(trt.contexts) == 3
    assert engine.num_captures == 2 + 5
    engine.close()


def test_one_graph_is_one(bundle: Path, trt: FakeTensorRT, cuda: FakeCuda) -> None:
    engine = load(bundle, trt, max_graphs=1)
    for _ in range(3):
        engine.run(*batch_of((50, 40)))
        engine.run(*batch_of((50, 50)))

    assert cuda.num_graphs == 1
    engine.close()


def test_without_graphs_a_context_for_each_run_at_once_runs_everything(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, oracle: OnnxRuntimeEngine
) -> None:
    engine = load(bundle, trt, max_graphs=0)
    batches = [batch_of((50, 70)), batch_of((70, 50)), batch_of((50, 70)), batch_of((50, 70))]

    for batch in batches:
        assert_alike(engine.run(*batch), oracle.run(*batch))

    assert (cuda.num_graphs, len(trt.contexts)) == (0, 2)
    engine.close()


def test_the_graph_that_was_not_used_for_longest_makes_room(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    engine = load(bundle, trt, max_graphs=2)
    often, seldom, new = (50, 70), (50, 60), (50, 50)

    for size in (often, often, seldom, seldom, often, new):
        engine.run(*batch_of(size))
    num_graphs = cuda.num_graphs
    engine.run(*batch_of(often))

    assert num_graphs == cuda.num_graphs == 1  # that of `often`, which was launched
    engine.close()


def test_an_engine_that_cannot_be_captured_runs_without_graphs_and_says_so_once(
    bundle: Path,
    trt: FakeTensorRT,
    cuda: FakeCuda,
    oracle: OnnxRuntimeEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trt.can_capture = False

    engine = load(bundle, trt)
    batch = batch_of((50, 70))
    for _ in range(3):
        assert_alike(engine.run(*batch), oracle.run(*batch))

    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "without CUDA graphs: execute_async_v3 failed: operation not permitted" in warnings[0]
    assert cuda.num_graphs == 0
    engine.close()
    assert cuda.leaks() == []


def test_every_profile_is_warm_before_the_first_request(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    engine = load(bundle, trt)

    used = {context.active_optimization_profile for context in trt.contexts}

    assert (used, cuda.num_graphs) == ({0, 1}, 2)
    engine.close()


def test_profiles_that_are_tuned_for_the_same_batch_are_all_warm(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    narrow = LANDSCAPE.model_copy(update={"min": LANDSCAPE.opt._replace(batch=1)})

    engine = load(planned((LANDSCAPE, PORTRAIT, narrow)), trt, max_graphs=8)

    assert {context.active_optimization_profile for context in trt.contexts} == {0, 1, 2}
    engine.close()


def test_no_memory_is_taken_while_serving(engine: TensorRTEngine, cuda: FakeCuda) -> None:
    num_blocks = len(cuda.blocks)

    engine.run(*batch_of((64, 128), (64, 128), (64, 128), (64, 128)))

    assert len(cuda.blocks) == num_blocks


def test_the_memory_that_the_engine_holds_is_reported(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    engine = load(bundle, trt)

    assert engine.gpu_memory_bytes == cuda.used_bytes > 4 * 64 * 128 * 10
    assert "toy holds 0 MiB of NVIDIA Fake" in caplog.text
    engine.close()
    assert cuda.used_bytes == 0
