from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from bundle.manifest import Manifest
from bundle.tensorrt_plan import HALF_FORM
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.onnxruntime_gpu import open_on_cuda, open_on_tensorrt
from plugins import library
from tests.fake_tensorrt import FakeTensorRT

DEMO = Path(__file__).parents[3] / "bundles" / "demo"
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
KINDS = ("fp16", "bf16", "int8")
Session = onnxruntime.InferenceSession


class GpuSession:
    """ONNX Runtime with its GPU providers: computes nothing, and remembers what it was given."""

    opened: list["GpuSession"]
    starts = True  # whether the providers do; else the CPU takes their place, as in the real one

    def __init__(
        self, model: Any, options: Any, *, providers: list[tuple], enable_fallback: int
    ) -> None:
        assert enable_fallback == 0
        self.model, self.options, self.providers = model, options, dict(providers)
        self.opened.append(self)
        # The graph that would be loaded, with its own operators in no domain that needs a library.
        self._session = Session(str(DEMO / "model.onnx"), providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [*self.providers, "CPUExecutionProvider"] if self.starts else GPU[-1:]

    def get_inputs(self) -> list[Any]:
        return self._session.get_inputs()

    def get_outputs(self) -> list[Any]:
        return self._session.get_outputs()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[GpuSession]:
    """The package onnxruntime-gpu, where everything that it needs is there."""
    monkeypatch.setattr(GpuSession, "opened", [], raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU)
    monkeypatch.setattr(onnxruntime, "InferenceSession", GpuSession)
    return GpuSession


@pytest.fixture
def plugin(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The plugin library for the TensorRT that ONNX Runtime uses."""
    trt.__version__ = "10.14.1.48"
    monkeypatch.setattr("plugins.library.FOLDER", tmp_path)
    path = tmp_path / library.TENSORRT_PLUGIN
    path.write_text("MSDeformAttn")
    return path


def open_demo(opener: Callable[..., OnnxRuntimeEngine], **changes: Any) -> OnnxRuntimeEngine:
    return opener(DEMO, Manifest.load(DEMO).model_copy(update=changes), 2)


@pytest.mark.parametrize("opener", [open_on_cuda, open_on_tensorrt])
def test_a_package_without_the_provider_is_told_which_to_install(
    opener: Callable[..., OnnxRuntimeEngine],
) -> None:
    with pytest.raises(
        ValueError,
        match=r"has no (Tensorrt|CUDA)ExecutionProvider.*install onnxruntime-gpu in place",
    ):
        open_demo(opener)


@pytest.mark.parametrize("opener", [open_on_cuda, open_on_tensorrt])
def test_a_provider_that_falls_back_to_the_cpu_is_refused(
    gpu: type[GpuSession],
    monkeypatch: pytest.MonkeyPatch,
    opener: Callable[..., OnnxRuntimeEngine],
) -> None:
    monkeypatch.setattr(gpu, "starts", False)

    with pytest.raises(ValueError, match=r"did not start, and CPUExecutionProvider took its place"):
        open_demo(opener)


def test_cuda_runs_the_standard_graph_without_rounding_float32(gpu: type[GpuSession]) -> None:
    engine = open_demo(open_on_cuda)

    (session,) = gpu.opened
    assert session.model == str(DEMO / "model.onnx")
    assert list(session.providers) == ["CUDAExecutionProvider"]
    assert session.providers["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert engine.info[:3] == ("onnxruntime CUDAExecutionProvider", "fp32", "standard")


def test_tensorrt_runs_the_operator_of_the_plugin(gpu: type[GpuSession], plugin: Path) -> None:
    engine = open_demo(open_on_tensorrt)

    (session,) = gpu.opened
    model = onnx.ModelProto.FromString(session.model)
    assert {n.domain for n in model.graph.node if n.op_type == "MSDeformAttn"} == {"trt.plugins"}
    options = session.providers["TensorrtExecutionProvider"]
    assert options["trt_extra_plugin_lib_paths"] == str(plugin)
    folder = session.options.get_session_config_entry(
        "session.model_external_initializers_file_folder_path"
    )
    assert folder == str(DEMO)
    assert engine.info.graph == "plugin"


def test_tensorrt_gets_one_profile_for_every_image_and_the_cache_of_the_bundle(
    gpu: type[GpuSession], plugin: Path
) -> None:
    open_demo(open_on_tensorrt)

    options = gpu.opened[0].providers["TensorrtExecutionProvider"]
    side = Manifest.load(DEMO).preprocess.long_side
    assert options["trt_profile_max_shapes"] == (
        f"images:8x{side}x{side}x3,padding_mask:8x{side}x{side}"
    )
    assert options["trt_profile_min_shapes"].startswith("images:1x")
    assert options["trt_engine_cache_path"] == str(DEMO / "cache")


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [("fp32", []), ("fp16", ["fp16"]), ("bf16", ["bf16"]), ("int8", ["fp16", "int8"])],
)
def test_tensorrt_is_allowed_what_a_graph_in_half_precision_holds(
    gpu: type[GpuSession], plugin: Path, precision: str, allowed: list[str]
) -> None:
    graphs = {"standard": "model.onnx", HALF_FORM: "model.plugin.onnx"}
    half = graphs if precision != "fp32" else Manifest.load(DEMO).graphs

    engine = open_demo(open_on_tensorrt, precision=precision, graphs=half)

    options = gpu.opened[0].providers["TensorrtExecutionProvider"]
    assert [kind for kind in KINDS if options[f"trt_{kind}_enable"] == "1"] == allowed
    assert engine.info.precision == precision


def test_a_graph_in_float32_is_run_in_float32_whatever_the_plan_is(
    gpu: type[GpuSession], plugin: Path
) -> None:
    on_cuda = open_demo(open_on_cuda, precision="fp16")
    on_tensorrt = open_demo(open_on_tensorrt, precision="fp16")

    options = gpu.opened[1].providers["TensorrtExecutionProvider"]
    assert [options[f"trt_{kind}_enable"] for kind in KINDS] == ["0", "0", "0"]
    assert on_cuda.info.precision == on_tensorrt.info.precision == "fp32"


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("11.4.0.106", "expected TensorRT 10, which ONNX Runtime uses, got 11.4.0.106"),
        ("10.14.1.48", "no plugin library for TensorRT 10.14.1.48"),
    ],
)
def test_without_a_plugin_for_its_tensorrt_the_standard_graph_is_run_and_said(
    gpu: type[GpuSession],
    trt: FakeTensorRT,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    version: str,
    reason: str,
) -> None:
    monkeypatch.setattr("plugins.library.FOLDER", tmp_path)
    trt.__version__ = version

    engine = open_demo(open_on_tensorrt)

    assert engine.info.graph == "standard"
    assert f"standard operators, slower: {reason}" in caplog.messages[-1]


def test_a_session_that_fails_says_why_and_what_to_do(
    gpu: type[GpuSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Please install TensorRT libraries")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)

    with pytest.raises(
        ValueError,
        match=r"model\.onnx: .*Please install TensorRT libraries\); install what it lacks",
    ):
        open_demo(open_on_cuda)
