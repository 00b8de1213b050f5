import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Bundle, Manifest, TensorSpec
from bundle.preprocess import pad_batch
from bundle.tensorrt_plan import BatchShape, ShapeProfile
from engines.base import EngineFailure
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.cuda import load_cuda
from engines.gpu.tensorrt_engine import TensorRTEngine
from tests.fake_cuda import CudaErrorCode, FakeCuda
from tests.fake_tensorrt import FakeTensorRT

LANDSCAPE = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(2, 64, 96), max=BatchShape(4, 64, 128)
)
PORTRAIT = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(2, 96, 64), max=BatchShape(4, 128, 64)
)
SINGLE = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(1, 64, 96), max=BatchShape(1, 128, 128)
)


def load(directory: Path, trt: FakeTensorRT, *, max_graphs: int = 4) -> TensorRTEngine:
    manifest = Manifest.load(directory)
    assert manifest.tensorrt is not None
    plan = (directory / "model.plan").read_bytes()
    profiles = manifest.tensorrt.profiles
    return TensorRTEngine(
        manifest, plan, profiles=profiles, trt=trt, cuda=load_cuda(), max_graphs=max_graphs
    )


def picture(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with a red and a green box at random places."""
    image = np.full((height, width, 3), 40, np.uint8)
    for channel in (0, 1):
        top, left = np.random.randint(0, height // 2), np.random.randint(0, width // 2)
        image[top : top + height // 3, left : left + width // 3] = 0
        image[top : top + height // 3, left : left + width // 3, channel] = 150 + 50 * channel
    return image


def batch_of(*sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return pad_batch([picture(*size) for size in sizes])


@pytest.fixture
def bundle(planned: Callable[..., Path]) -> Path:
    return planned((LANDSCAPE, PORTRAIT))


@pytest.fixture
def engine(bundle: Path, trt: FakeTensorRT, cuda: FakeCuda) -> Iterator[TensorRTEngine]:
    engine = load(bundle, trt)
    yield engine
    engine.close()
    assert cuda.leaks() == []


@pytest.fixture
def oracle(bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(Bundle.load(bundle), threads=1)


def assert_alike(found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


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


def test_a_shape_has_its_graph_from_the_second_run_on(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    engine = load(bundle, trt)
    batch = batch_of((50, 70))

    assert [graphs_after(engine, cuda, batch) for _ in range(3)] == [2, 3, 3]  # 2 from warm-up
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
    engine.close()


def test_without_graphs_one_context_runs_everything(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, oracle: OnnxRuntimeEngine
) -> None:
    engine = load(bundle, trt, max_graphs=0)
    batches = [batch_of((50, 70)), batch_of((70, 50)), batch_of((50, 70)), batch_of((50, 70))]

    for batch in batches:
        assert_alike(engine.run(*batch), oracle.run(*batch))

    assert (cuda.num_graphs, len(trt.contexts)) == (0, 1)
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


def test_the_memory_that_the_engine_holds_is_told(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    engine = load(bundle, trt)

    assert engine.gpu_memory_bytes == cuda.used_bytes > 4 * 64 * 128 * 10
    assert "toy holds 0 MiB of NVIDIA Fake" in caplog.text
    engine.close()
    assert cuda.used_bytes == 0


def test_the_smallest_profile_that_takes_a_batch_is_chosen(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    engine = load(planned((LANDSCAPE, PORTRAIT, SINGLE)), trt, max_graphs=1)

    assert profile_of(engine, trt, (40, 60)) == 2
    assert profile_of(engine, trt, (60, 90), (60, 90)) == 0
    assert profile_of(engine, trt, (120, 60), (100, 60)) == 1
    engine.close()


def profile_of(engine: TensorRTEngine, trt: FakeTensorRT, *sizes: tuple[int, int]) -> int:
    engine.run(*batch_of(*sizes))
    (context,) = trt.contexts
    return context.active_optimization_profile


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
    engine = load(planned((LANDSCAPE, PORTRAIT)), trt)
    only_padding = np.ones((1, 64, 64), np.bool_)

    with pytest.raises(EngineFailure, match="expected finite scores and boxes"):
        engine.run(np.zeros((1, 64, 64, 3), np.uint8), only_padding)
    engine.close()


# --- what ends the start


def refused(directory: Path, trt: FakeTensorRT) -> str:
    """Why the engine does not start; nothing may be left behind."""
    with pytest.raises(ValueError, match=r"make export RUNTIME=tensorrt") as caught:
        load(directory, trt)
    assert trt.cuda.leaks() == []
    return str(caught.value)


def test_a_corrupt_plan_is_refused(bundle: Path, trt: FakeTensorRT) -> None:
    manifest = Manifest.load(bundle)
    (bundle / "model.plan").write_bytes(b"no plan")
    manifest.save(bundle)  # a damaged file is the manifest's concern

    assert "magic tag does not match" in refused(bundle, trt)


def test_a_plan_whose_operator_is_missing_is_refused(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    message = refused(planned((LANDSCAPE, PORTRAIT), needs="MSDeformAttn"), trt)

    assert (
        "does not run on NVIDIA Fake: deserialize_cuda_engine failed: Plugin not found" in message
    )


def test_memory_that_does_not_suffice_is_told_with_what_is_free(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    cuda.total_bytes = 300_000

    message = refused(bundle, trt)

    assert "the memory of NVIDIA Fake does not suffice" in message
    assert "of 0 MiB are free; stop what else uses it" in message
    assert "SHAPES=" in message


def test_profiles_that_do_not_take_every_image_are_refused(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    message = refused(planned((LANDSCAPE,)), trt)

    assert "expected profiles that take images of 64x128 and 128x64" in message


@pytest.mark.parametrize("missing", [1, 2])
def test_a_plan_with_other_profiles_than_its_manifest_is_refused(
    planned: Callable[..., Path], trt: FakeTensorRT, missing: int
) -> None:
    directory = planned((LANDSCAPE, PORTRAIT, SINGLE))
    manifest = Manifest.load(directory)
    assert manifest.tensorrt is not None
    plan = manifest.tensorrt.model_copy(
        update={"profiles": (PORTRAIT, LANDSCAPE, SINGLE)[: 1 + missing]}
    )
    manifest.model_copy(update={"tensorrt": plan}).save(directory)

    assert "the plan is not that of the manifest: expected" in refused(directory, trt)


@pytest.mark.parametrize(
    ("side", "spec", "message"),
    [
        ("outputs", TensorSpec(name="logits", dtype="float32", shape=(1,)), "expected outputs"),
        ("inputs", TensorSpec(name="images", dtype="float32", shape=("batch", 3)), "inputs"),
    ],
)
def test_tensors_that_differ_from_the_manifest_are_refused(
    bundle: Path, trt: FakeTensorRT, side: str, spec: TensorSpec, message: str
) -> None:
    Manifest.load(bundle).model_copy(update={side: (spec,)}).save(bundle)

    assert message in refused(bundle, trt)


@pytest.mark.parametrize(
    "function",
    [
        *("create_execution_context", "set_tensor_address", "set_optimization_profile_async"),
        *("set_input_shape", "execute_async_v3"),
    ],
)
def test_an_engine_that_fails_at_start_is_refused(
    bundle: Path, trt: FakeTensorRT, function: str
) -> None:
    trt.errors[function] = "Error Code 2: the kernel does not fit this device"

    message = refused(bundle, trt)

    assert "the plan does not run on NVIDIA Fake" in message
    assert "the kernel does not fit this device" in message


@pytest.mark.parametrize(
    "function",
    [
        *("cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMalloc", "cudaHostAlloc"),
        *("cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize", "cudaGraphLaunch"),
    ],
)
def test_whatever_fails_at_start_leaves_nothing_behind(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda, function: str
) -> None:
    cuda.failures[function] = CudaErrorCode.cudaErrorInvalidValue

    assert function in refused(bundle, trt)
