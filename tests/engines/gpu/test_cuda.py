import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engines.gpu.cuda import CudaError, DeviceMemory, Event, PinnedMemory, Stream, load_cuda
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


def test_a_gpu_that_does_not_exist_is_refused_with_how_many_there_are(cuda: FakeCuda) -> None:
    cuda.num_devices = 2

    assert load_cuda(1).device().name == "NVIDIA Fake"
    with pytest.raises(ValueError, match=r"expected DETR_DEVICE below 2, .*, got 2; `nvidia-smi"):
        load_cuda(2)


def test_a_driver_library_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", SimpleNamespace(cudaSetDevice=fail))

    with pytest.raises(ValueError, match=r"CUDA cannot be used: .*libcuda\.so\.1; check"):
        load_cuda()


# --- what the fake finds out


def test_two_streams_that_use_the_same_memory_without_waiting_are_found_out(
    cuda: FakeCuda,
) -> None:
    runtime = load_cuda()
    first, second, arrived = Stream(runtime), Stream(runtime), Event(runtime)
    there, other, here = (
        DeviceMemory(runtime, 8),
        DeviceMemory(runtime, 8),
        PinnedMemory(runtime, 8),
    )
    first.upload(there.address, here.bytes)

    with pytest.raises(Misuse, match="two streams use the same memory, and neither waits"):
        second.copy(other.address, there.address, num_bytes=8)

    first.record(arrived)
    second.wait_for(arrived)
    second.copy(other.address, there.address, num_bytes=8)


def test_a_thread_that_uses_another_gpu_is_found_out(cuda: FakeCuda) -> None:
    cuda.num_devices = 2
    stream, there = Stream(load_cuda(1)), DeviceMemory(load_cuda(1), 8)
    load_cuda(0)

    with pytest.raises(Misuse, match="the thread uses GPU 0, the stream is of 1"):
        stream.copy(there.address, there.address, num_bytes=8)


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
