import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engines.gpu.cuda import CudaError, DeviceMemory, PinnedMemory, Stream, load_cuda
from tests.fake_cuda import CudaErrorCode, FakeCuda, Misuse


def test_the_device_is_reported_by_name_and_memory(cuda: FakeCuda) -> None:
    device = load_cuda().device()

    assert device[:2] == ("NVIDIA Fake", "8.6")
    assert device.free_bytes == device.total_bytes == cuda.total_bytes


def test_bytes_go_to_the_gpu_and_back(cuda: FakeCuda) -> None:
    runtime = load_cuda()
    stream, there, here = Stream(runtime), DeviceMemory(runtime, 64), PinnedMemory(runtime, 64)
    sent = np.arange(64, dtype=np.uint8)

    here.bytes[:] = sent
    stream.upload(there.address, here.bytes)
    stream.synchronize()
    here.bytes[:] = 0
    stream.download(here.bytes, there.address)
    stream.synchronize()

    np.testing.assert_array_equal(here.bytes, sent)
    for resource in (here, there, stream):
        resource.close()
    assert cuda.leaks() == []


def test_an_error_names_the_function_the_reason_and_the_code(cuda: FakeCuda) -> None:
    with pytest.raises(CudaError, match=r"^cudaMalloc: out of memory \(cudaErrorMemoryAlloc"):
        DeviceMemory(load_cuda(), cuda.total_bytes + 1)


def test_what_fails_during_a_capture_ends_it(cuda: FakeCuda) -> None:
    stream = Stream(load_cuda())

    def fail() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        stream.capture(fail)

    stream.synchronize()  # which no capture would allow
    stream.close()
    assert cuda.leaks() == []


@pytest.mark.parametrize("function", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_cannot_be_ended_leaves_nothing_behind(
    cuda: FakeCuda, function: str
) -> None:
    stream = Stream(load_cuda())
    cuda.failures[function] = CudaErrorCode.cudaErrorStreamCaptureInvalidated

    with pytest.raises(CudaError, match=function):
        stream.capture(lambda: None)

    assert cuda.num_graphs == 0


def test_a_missing_binding_is_reported_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)

    with pytest.raises(ValueError, match=r"cuda-bindings cannot be loaded .*pip install --group"):
        load_cuda()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (CudaErrorCode.cudaErrorInsufficientDriver, "no NVIDIA driver, or one too old"),
        (CudaErrorCode.cudaErrorNoDevice, "no GPU is available to this process"),
        (CudaErrorCode.cudaErrorIllegalAddress, "CUDA cannot be used"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_reported_with_what_to_check(
    cuda: FakeCuda, code: CudaErrorCode, message: str
) -> None:
    cuda.failures["cudaSetDevice"] = code

    with pytest.raises(ValueError, match=rf"{message}.*{code.name}.*nvidia-smi.*--gpus all"):
        load_cuda()


def test_a_driver_library_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", SimpleNamespace(cudaSetDevice=fail))

    with pytest.raises(ValueError, match=r"CUDA cannot be used: .*libcuda\.so\.1; check"):
        load_cuda()


# --- what the fake finds out


def test_freeing_memory_in_use_is_found_out(cuda: FakeCuda) -> None:
    runtime = load_cuda()
    stream, there, here = Stream(runtime), DeviceMemory(runtime, 8), PinnedMemory(runtime, 8)
    stream.upload(there.address, here.bytes)

    with pytest.raises(Misuse, match="device memory was freed while it was in use"):
        there.close()
    with pytest.raises(Misuse, match="pinned memory was freed while it was in use"):
        here.close()


def test_changing_pinned_memory_during_a_copy_is_found_out(cuda: FakeCuda) -> None:
    runtime = load_cuda()
    stream, there, here = Stream(runtime), DeviceMemory(runtime, 8), PinnedMemory(runtime, 8)

    stream.upload(there.address, here.bytes)
    here.bytes[3] += 1

    with pytest.raises(Misuse, match="changed while it was being copied"):
        stream.synchronize()


def test_copying_more_than_there_is_room_for_is_found_out(cuda: FakeCuda) -> None:
    runtime = load_cuda()
    stream, there, here = Stream(runtime), DeviceMemory(runtime, 8), PinnedMemory(runtime, 9)

    with pytest.raises(Misuse, match="1 too late"):
        stream.upload(there.address, here.bytes)


def test_allocating_during_a_capture_is_found_out(cuda: FakeCuda) -> None:
    runtime = load_cuda()

    def allocate() -> None:
        DeviceMemory(runtime, 8)

    with pytest.raises(Misuse, match="while a stream is being captured"):
        Stream(runtime).capture(allocate)
