from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from bundle.manifest import Bundle
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.onnxruntime_cuda import open_on_cuda

DEMO = Path(__file__).parents[3] / "bundles" / "demo"
GPU = ["CUDAExecutionProvider", "CPUExecutionProvider"]
Session = onnxruntime.InferenceSession


class GpuSession:
    """ONNX Runtime with its CUDA provider: computes nothing, and remembers what it was given."""

    opened: list["GpuSession"]
    starts = True  # whether the provider does; else the CPU takes their place, as in the real one

    def __init__(
        self, model: str, options: Any, *, providers: list[tuple], enable_fallback: int
    ) -> None:
        assert enable_fallback == 0
        self.model, self.providers = model, dict(providers)
        self.opened.append(self)
        self._session = Session(model, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [*self.providers, "CPUExecutionProvider"] if self.starts else GPU[-1:]

    def get_inputs(self) -> list[Any]:
        return self._session.get_inputs()

    def get_outputs(self) -> list[Any]:
        return self._session.get_outputs()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[GpuSession]:
    """The package onnxruntime-gpu, with everything that it needs."""
    monkeypatch.setattr(GpuSession, "opened", [], raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU)
    monkeypatch.setattr(onnxruntime, "InferenceSession", GpuSession)
    return GpuSession


def open_demo(**changes: Any) -> OnnxRuntimeEngine:
    return open_on_cuda(Bundle.load(DEMO).with_manifest(**changes), 2, device=1)


def test_a_package_without_the_provider_is_told_which_to_install() -> None:
    with pytest.raises(
        ValueError,
        match=r"has no CUDAExecutionProvider.*install onnxruntime-gpu instead",
    ):
        open_demo()


def test_a_provider_that_falls_back_to_the_cpu_is_refused(
    gpu: type[GpuSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "starts", False)

    with pytest.raises(ValueError, match=r"did not start, and CPUExecutionProvider took its place"):
        open_demo()


def test_cuda_runs_the_standard_graph_without_rounding_float32(gpu: type[GpuSession]) -> None:
    engine = open_demo()

    (session,) = gpu.opened
    assert session.model == str(DEMO / "model.onnx")
    assert list(session.providers) == ["CUDAExecutionProvider"]
    assert session.providers["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert session.providers["CUDAExecutionProvider"]["device_id"] == "1"
    assert engine.info[:4] == ("onnxruntime CUDAExecutionProvider", "fp32", "fp32", "standard")


def test_a_bundle_in_half_precision_is_run_in_float32(gpu: type[GpuSession]) -> None:
    engine = open_demo(precision="fp16")

    assert engine.info.precision == "fp32"


def test_a_session_that_fails_says_why_and_what_to_do(
    gpu: type[GpuSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 35")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)

    with pytest.raises(
        ValueError,
        match=r"model\.onnx: .*CUDA failure 35\); install what is missing",
    ):
        open_demo()
