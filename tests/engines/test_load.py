"""Which engine is opened on a machine with a GPU, and on one without."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Bundle
from bundle.preprocess import pad_batch
from engines.load import GpuOptions, open_engine
from tests.fake_cuda import CudaErrorCode, FakeCuda
from tests.fake_tensorrt import FakeTensorRT


def test_a_plan_is_run_where_there_is_a_gpu(
    planned: Callable[..., Path], scene: np.ndarray, cuda: FakeCuda
) -> None:
    engine = open_engine(Bundle.load(planned()))

    output = engine.run(*pad_batch([scene[:64]]))

    assert engine.info[:4] == ("tensorrt", "fp32", "fp32", "standard")
    assert engine.max_batch_size == 8
    assert output.scores[0, 0] == pytest.approx(230 / 255)
    engine.close()
    assert cuda.leaks() == []


def test_a_plan_is_left_alone_on_a_machine_without_a_gpu_which_says_so(
    planned: Callable[..., Path], cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    directory = planned()
    cuda.failures["cudaSetDevice"] = CudaErrorCode.cudaErrorNoDevice

    engine = open_engine(Bundle.load(directory))

    assert engine.info.runtime == "openvino"
    (message,) = [text for text in caplog.messages if "plan" in text]
    assert message.startswith("using the CPU instead of the bundle's TensorRT plan: no GPU is")


def test_a_plan_is_left_alone_where_tensorrt_is_not_installed_which_is_said(
    planned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = planned()
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    engine = open_engine(Bundle.load(directory))

    assert engine.info.runtime == "openvino"
    assert (
        "using the CPU instead of the bundle's TensorRT plan: TensorRT cannot be loaded"
        in caplog.text
    )


def test_a_bundle_without_a_plan_does_not_ask_for_a_gpu(
    toy_bundle: Path, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(Bundle.load(toy_bundle))

    assert engine.info.runtime == "openvino"
    assert "plan" not in caplog.text


def test_a_plan_for_another_gpu_is_no_reason_to_go_on_with_the_cpu(
    planned: Callable[..., Path], cuda: FakeCuda
) -> None:
    directory = planned()
    cuda.name = b"NVIDIA L4"

    with pytest.raises(ValueError, match="GPU: built for NVIDIA Fake, found NVIDIA L4"):
        open_engine(Bundle.load(directory))


def test_a_plan_is_built_where_that_is_allowed(
    planned: Callable[..., Path], cuda: FakeCuda, trt: FakeTensorRT
) -> None:
    directory = planned()
    cuda.name = b"NVIDIA L4"

    engine = open_engine(Bundle.load(directory), gpu=GpuOptions(may_build=True, max_graphs=2))

    assert engine.info.runtime == "tensorrt"
    assert len(trt.contexts) == 2
    engine.close()


def test_tensorrt_without_a_gpu_is_refused(toy_bundle: Path, trt: FakeTensorRT) -> None:
    trt.cuda.failures["cudaSetDevice"] = CudaErrorCode.cudaErrorInsufficientDriver

    with pytest.raises(ValueError, match="no NVIDIA driver, or one too old"):
        open_engine(Bundle.load(toy_bundle), engine="tensorrt")


def test_the_plan_runs_on_the_gpu_that_is_asked_for(
    planned: Callable[..., Path], cuda: FakeCuda
) -> None:
    cuda.num_devices = 3

    engine = open_engine(Bundle.load(planned()), gpu=GpuOptions(device=2))

    assert engine.info.runtime == "tensorrt"
    assert {stream.device for stream in cuda.streams} == {2}
    engine.close()


def test_a_mode_that_an_engine_does_not_have_is_said(
    planned: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(Bundle.load(planned()), mode="throughput")

    assert "tensorrt has no throughput mode" in caplog.text
    engine.close()


def test_onnx_runtime_without_its_gpu_package_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(ValueError, match="install onnxruntime-gpu instead of onnxruntime"):
        open_engine(Bundle.load(toy_bundle), engine="onnxruntime-cuda")
