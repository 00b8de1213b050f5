"""The TensorRT engine answers like ONNX Runtime, and its errors are engine failures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Bundle, Manifest
from engines.base import EngineFailure
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.cuda import load_cuda
from engines.gpu.tensorrt_builder import BuildOptions, build_plan
from engines.gpu.tensorrt_engine import TensorRTEngine
from engines.gpu.tensorrt_runtime import load_plugin
from engines.guard import guard
from tests.engines.gpu.planned import LANDSCAPE, PORTRAIT, SINGLE, assert_alike, batch_of, load
from tests.fake_cuda import CudaErrorCode, FakeCuda
from tests.fake_tensorrt import FakeTensorRT


@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 96)],
        [(96, 64)],
        [(64, 128), (60, 100), (40, 120), (64, 64)],
        [(128, 64), (127, 33)],
        [(32, 32), (32, 32)],
    ],
    ids=str,
)
def test_a_batch_is_answered_as_by_onnx_runtime(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine, sizes: list[tuple[int, int]]
) -> None:
    batch = batch_of(*sizes)

    assert_alike(engine.run(*batch), oracle.run(*batch))


def test_every_run_of_a_shape_is_right_with_and_without_a_graph(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine
) -> None:
    for _ in range(4):
        batch = batch_of((50, 70), (60, 80))
        assert_alike(engine.run(*batch), oracle.run(*batch))


def test_more_shapes_than_graphs_are_right_in_any_order(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine
) -> None:
    sizes = [(33 + 6 * number, 40 + 15 * number) for number in range(6)]
    order = np.random.choice(6, 60)

    for number in order:
        batch = batch_of(sizes[number], *[sizes[number]] * (number % 3))
        assert_alike(engine.run(*batch), oracle.run(*batch))


def test_batches_of_one_size_and_any_number_are_right(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine
) -> None:
    for number in (1, 3, 2, 3, 1, 3, 2):
        batch = batch_of(*[(50, 70)] * number)
        assert_alike(engine.run(*batch), oracle.run(*batch))


def test_images_smaller_than_every_profile_are_padded_up(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine
) -> None:
    images, padding_mask = batch_of((10, 50), (8, 50))
    expected = oracle.run(
        np.pad(images, ((0, 0), (0, 22), (0, 0), (0, 0))),
        np.pad(padding_mask, ((0, 0), (0, 22), (0, 0)), constant_values=True),
    )

    engine.run(*batch_of((32, 50), (32, 50)))  # leaves its pixels in the buffers

    assert_alike(engine.run(images, padding_mask), expected)


def test_a_plan_of_a_graph_in_float32_does_not_pass_for_bf16(
    bundle: Path, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    Bundle.load(bundle).with_manifest(precision="bf16").save()

    engine = load(bundle, trt)
    engine.close()

    assert engine.info.precision == engine.info.float_type == "fp32"
    assert "the bundle has no graph in bf16 and runs in fp32; export it again" in caplog.messages


def test_an_answer_outlives_the_next_run(engine: TensorRTEngine) -> None:
    first = engine.run(*batch_of((64, 96)))
    kept = [array.copy() for array in first]

    engine.run(*batch_of((64, 96)))

    assert_alike(first, kept)


def test_two_engines_in_one_process_do_not_meet(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine, bundle: Path, trt: FakeTensorRT
) -> None:
    other = load(bundle, trt)
    batch, other_batch = batch_of((64, 96)), batch_of((96, 64), (90, 60))

    assert_alike(engine.run(*batch), oracle.run(*batch))
    assert_alike(other.run(*other_batch), oracle.run(*other_batch))
    other.close()
    assert_alike(engine.run(*batch), oracle.run(*batch))


def test_two_engines_with_the_operator_run_in_one_process(
    planned: Callable[..., Path], trt: FakeTensorRT, cuda: FakeCuda, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.so"
    plugin.write_text("MSDeformAttn")
    directory = planned((LANDSCAPE, PORTRAIT), needs="MSDeformAttn")
    manifest = Manifest.load(directory)
    assert manifest.tensorrt is not None
    profiles = manifest.tensorrt.profiles
    options = BuildOptions(profiles, plugin)
    plan = build_plan(trt, directory / "model.onnx", inputs=manifest.inputs, options=options)
    oracle = OnnxRuntimeEngine(Bundle.load(directory), threads=1)
    batch = batch_of((64, 96))

    load_plugin(trt, plugin)
    engines = [
        load(directory, trt),
        TensorRTEngine(manifest, plan, profiles=profiles, trt=trt, cuda=load_cuda(), max_graphs=4),
    ]

    for engine in engines:
        assert_alike(engine.run(*batch), oracle.run(*batch))
        engine.close()
    assert cuda.leaks() == []


def test_a_plan_that_brings_an_operator_once_more_is_refused(
    planned: Callable[..., Path], trt: FakeTensorRT, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.so"
    plugin.write_text("MSDeformAttn")
    directory = planned((LANDSCAPE, PORTRAIT), libraries=[str(plugin)])
    load_plugin(trt, plugin)

    with pytest.raises(ValueError, match="plugin creator MSDeformAttn exists already"):
        load(directory, trt)


def test_the_smallest_profile_that_takes_a_batch_is_chosen(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    engine = load(planned((LANDSCAPE, PORTRAIT, SINGLE)), trt, max_graphs=0)

    assert profile_of(engine, trt, (40, 60)) == 2
    assert profile_of(engine, trt, (60, 90), (60, 90)) == 0
    assert profile_of(engine, trt, (120, 60), (100, 60)) == 1
    engine.close()


def profile_of(engine: TensorRTEngine, trt: FakeTensorRT, *sizes: tuple[int, int]) -> int:
    engine.run(*batch_of(*sizes))
    return trt.last_profile


def test_the_batch_is_limited_by_the_profiles(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    engine = load(planned((LANDSCAPE, SINGLE)), trt)

    assert engine.max_batch_size == 1  # a batch of portraits fits no profile
    engine.close()


def test_a_batch_that_no_profile_takes_is_refused(engine: TensorRTEngine) -> None:
    with pytest.raises(EngineFailure, match=r"at most one of .*\(4, 64, 128\).*got \(5, 32, 32\)"):
        engine.run(*batch_of(*[(32, 32)] * 5))

    engine.run(*batch_of((32, 32)))


@pytest.mark.parametrize(
    "function",
    ["cudaMemcpyAsync", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"],
)
def test_an_error_of_cuda_is_an_engine_failure_and_the_engine_goes_on(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine, cuda: FakeCuda, function: str
) -> None:
    cuda.failures[function] = CudaErrorCode.cudaErrorInvalidValue

    with pytest.raises(EngineFailure, match=rf"failed on \(2, 64, 96, 3\): {function}: .*Invalid"):
        engine.run(*batch_of((64, 96), (64, 96)))

    batch = batch_of((64, 96), (64, 96))
    assert_alike(engine.run(*batch), oracle.run(*batch))


@pytest.mark.parametrize(
    "function",
    [
        *("set_optimization_profile_async", "set_input_shape", "execute_async_v3"),
    ],
)
def test_an_error_of_tensorrt_is_an_engine_failure_with_its_reason(
    engine: TensorRTEngine, oracle: OnnxRuntimeEngine, trt: FakeTensorRT, function: str
) -> None:
    trt.errors[function] = "Error Code 1: Myelin"

    with pytest.raises(EngineFailure, match=rf"{function}.* failed: Error Code 1: Myelin"):
        engine.run(*batch_of((80, 41)))  # a new shape, of another profile than the last

    trt.errors.clear()
    for _ in range(3):
        batch = batch_of((80, 41))
        assert_alike(engine.run(*batch), oracle.run(*batch))


def test_a_gpu_that_is_lost_fails_every_run_and_can_be_closed(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(bundle, trt)
    cuda.is_lost = True

    for _ in range(2):
        with pytest.raises(EngineFailure, match="cudaErrorIllegalAddress"):
            engine.run(*batch_of((64, 96)))
    engine.close()

    assert "did not release everything" in caplog.text


def test_scores_that_are_not_finite_are_an_engine_failure(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    bundle = planned((LANDSCAPE, PORTRAIT))
    engine = guard(load(bundle, trt), Bundle.load(bundle).manifest)
    only_padding = np.ones((1, 64, 64), np.bool_)

    with pytest.raises(EngineFailure, match="expected finite scores and boxes"):
        engine.run(np.zeros((1, 64, 64, 3), np.uint8), only_padding)
    engine.close()
