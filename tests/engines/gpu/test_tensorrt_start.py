"""Plans and bundles that the engine refuses to start with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.manifest import Manifest, TensorSpec
from tests.engines.gpu.planned import LANDSCAPE, PORTRAIT, SINGLE, load
from tests.fake_cuda import CudaErrorCode, FakeCuda
from tests.fake_tensorrt import FakeTensorRT


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


def test_memory_that_does_not_suffice_is_reported_with_what_is_free(
    bundle: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    cuda.total_bytes = 300_000

    message = refused(bundle, trt)

    assert "NVIDIA Fake has too little memory" in message
    assert "of 0 MiB are free; stop other programs on it" in message
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

    assert "the plan does not match the manifest: expected" in refused(directory, trt)


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
