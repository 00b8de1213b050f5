"""Batches that come to the GPU while another one is computed."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bundle.postprocess import RawOutput
from engines.base import EngineFailure
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.tensorrt_engine import TensorRTEngine
from tests.engines.gpu.planned import assert_alike, batch_of, load
from tests.fake_cuda import CudaErrorCode, FakeCuda
from tests.fake_tensorrt import FakeTensorRT

SIZES = [[(64, 96)], [(50, 70), (60, 80)], [(96, 64), (33, 40)]]


@pytest.mark.parametrize("max_graphs", [0, 1, 4])
def test_a_batch_comes_while_another_is_computed(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, oracle: OnnxRuntimeEngine, max_graphs: int
) -> None:
    engine = load(bundle, trt, max_graphs=max_graphs)
    batches = [batch_of(*SIZES[number // 2 % 3]) for number in range(12)]

    while batches:
        first, second = batches.pop(), batches.pop()
        answers: list[RawOutput] = []
        cuda.meanwhile = partial(run_into, answers, engine, second)
        assert_alike(engine.run(*first), oracle.run(*first))
        assert_alike(answers[0], oracle.run(*second))
    engine.close()
    assert cuda.leaks() == []


def run_into(
    answers: list[RawOutput], engine: TensorRTEngine, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    answers.append(engine.run(*batch))


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamWaitEvent", "cudaEventRecord"])
def test_a_batch_that_fails_leaves_the_one_before_it_alone(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine, cuda: FakeCuda, function: str
) -> None:
    first, second = batch_of((64, 96)), batch_of((50, 70))

    def fail() -> None:
        cuda.failures[function] = CudaErrorCode.cudaErrorInvalidValue
        with pytest.raises(EngineFailure, match=function):
            engine.run(*second)

    cuda.meanwhile = fail

    assert_alike(engine.run(*first), oracle.run(*first))
    assert_alike(engine.run(*second), oracle.run(*second))


def test_every_thread_uses_the_gpu_of_the_engine(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    cuda.num_devices = 2
    engine = load(bundle, trt, device=1)

    with ThreadPoolExecutor(1) as thread:
        assert len(thread.submit(engine.run, *batch_of((64, 96))).result().scores) == 1
    with ThreadPoolExecutor(1) as thread:
        thread.submit(engine.close).result()
        assert thread.submit(lambda: cuda.device).result() == 1
    assert cuda.leaks() == []


def test_batches_that_fail_in_a_row_leave_nothing_in_the_streams(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine, cuda: FakeCuda, trt: FakeTensorRT
) -> None:
    for _ in range(3):
        cuda.failures["cudaEventRecord"] = CudaErrorCode.cudaErrorInvalidValue
        with pytest.raises(EngineFailure, match="cudaEventRecord"):
            engine.run(*batch_of((64, 96)))
    trt.errors["execute_async_v3"] = "Error Code 1: Myelin"
    for _ in range(3):
        with pytest.raises(EngineFailure, match="Myelin"):
            engine.run(*batch_of((64, 96)))

    trt.errors.clear()
    batch = batch_of((64, 96))
    assert_alike(engine.run(*batch), oracle.run(*batch))
