"""What every engine does, and which one is opened."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_native

from bundle.manifest import Bundle, TensorSpec
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch
from engines.base import Engine, EngineFailure
from engines.cpu import onnxruntime_engine, openvino_streams
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.cpu.openvino_compile import GraphCompiler
from engines.cpu.openvino_engine import OpenVinoEngine
from engines.load import EngineName, open_engine
from tests.toy_bundle import TOY_GRAPH, make_toy_bundle

ROOT = Path(__file__).parents[2]
ENGINES = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
RUNTIME_ERRORS = {
    "onnxruntime": onnxruntime_engine.RUNTIME_ERRORS,
    "openvino": openvino_streams.RUNTIME_ERRORS,
}
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> EngineName:
    return request.param


@pytest.fixture
def engine(toy_bundle: Path, kind: EngineName) -> Engine:
    return open_engine(Bundle.load(toy_bundle), engine=kind, threads=1)


def test_the_engine_finds_what_the_graph_finds(engine: Engine, scene: np.ndarray) -> None:
    output = engine.run(*pad_batch([scene]))

    assert [part.dtype.name for part in output] == ["float32", "int64", "float32"]
    np.testing.assert_allclose(output.scores, [[230 / 255, 200 / 255, 0]])
    np.testing.assert_array_equal(output.labels, [[0, 1, 2]])
    red, green = output.boxes[0, :2] * (128, 96, 128, 96)
    np.testing.assert_allclose(red, [16, 24, 64, 72], atol=1e-4)
    np.testing.assert_allclose(green, [80, 8, 112, 40], atol=1e-4)


def test_an_image_is_answered_alike_alone_and_in_a_padded_batch(
    engine: Engine, scene: np.ndarray
) -> None:
    alone = engine.run(*pad_batch([scene]))
    large = np.full((150, 170, 3), 255, np.uint8)

    together = engine.run(*pad_batch([large, scene]))

    for part in RawOutput._fields:
        found, expected = getattr(together, part)[1], getattr(alone, part)[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_output_stays_as_it_was_when_the_engine_runs_again(
    engine: Engine, scene: np.ndarray
) -> None:
    first = engine.run(*pad_batch([scene]))
    kept = [values.copy() for values in first]

    engine.run(*pad_batch([np.full((96, 128, 3), 255, np.uint8)]))

    for expected, found in zip(kept, first, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_name_and_batch_size_are_those_of_the_manifest(tmp_path: Path, kind: EngineName) -> None:
    make_toy_bundle(tmp_path / "toy", max_batch_size=3)

    engine = open_engine(Bundle.load(tmp_path / "toy"), engine=kind, threads=1)

    assert (engine.name, engine.max_batch_size) == ("toy", 3)


def test_an_engine_says_what_it_is(engine: Engine, kind: EngineName) -> None:
    assert engine.info == (kind, "fp32", "fp32", "standard", 1, 1)


def test_a_precision_that_is_not_possible_here_is_replaced_and_said(
    toy_bundle: Path, kind: EngineName, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.load(toy_bundle).with_manifest(precision="fp16")

    engine = ENGINES[kind](bundle, threads=1)

    assert engine.info.precision == "fp32"
    assert caplog.messages == ["fp16 is not possible here: the bundle runs in fp32"]


def test_a_damaged_bundle_is_not_opened(tmp_path: Path) -> None:
    make_toy_bundle(tmp_path / "toy")
    (tmp_path / "toy" / "weights.bin").write_bytes(b"1234")

    with pytest.raises(ValueError, match=r"weights\.bin: expected SHA-256"):
        open_engine(Bundle.load(tmp_path / "toy"))


def test_a_file_that_is_not_a_graph_is_named(tmp_path: Path, kind: EngineName) -> None:
    manifest = make_toy_bundle(tmp_path / "toy")
    (tmp_path / "toy" / "model.onnx").write_bytes(b"not a graph")

    with pytest.raises(
        ValueError, match=rf"model\.onnx: {TITLES[kind]} cannot load .*`make export`"
    ):
        ENGINES[kind](Bundle(tmp_path / "toy", manifest))


def test_an_unknown_graph_is_refused(toy_bundle: Path, kind: EngineName) -> None:
    with pytest.raises(ValueError, match=r"expected a graph 'plugin', got \['standard'\]"):
        ENGINES[kind](Bundle.load(toy_bundle), graph="plugin")


def test_a_graph_unlike_its_manifest_is_refused(toy_bundle: Path, kind: EngineName) -> None:
    outputs = (TensorSpec(name="logits", dtype="float32", shape=(1,)),)
    bundle = Bundle.load(toy_bundle).with_manifest(outputs=outputs)

    with pytest.raises(ValueError, match=r"expected outputs \['logits'\], got \['boxes'"):
        ENGINES[kind](bundle)


def test_an_error_of_the_runtime_is_an_engine_failure(engine: Engine, kind: EngineName) -> None:
    images, padding_mask = np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8), np.bool_)

    with pytest.raises(EngineFailure, match=rf"{TITLES[kind]} failed on \(1, 8, 8, 4\)") as caught:
        engine.run(images, padding_mask)

    assert isinstance(caught.value.__cause__, RUNTIME_ERRORS[kind])
    assert "\n" not in str(caught.value)


def test_the_engine_goes_on_after_a_failure(engine: Engine, scene: np.ndarray) -> None:
    with pytest.raises(EngineFailure):
        engine.run(np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8), np.bool_))

    assert engine.run(*pad_batch([scene])).scores[0, 0] > 0.9


@pytest.mark.parametrize(
    "error", onnxruntime_engine.RUNTIME_ERRORS, ids=lambda error: error.__name__
)
def test_every_error_of_onnx_runtime_is_translated(
    toy_bundle: Path, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("broken")

    engine = OnnxRuntimeEngine(Bundle.load(toy_bundle), threads=1)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)

    with pytest.raises(EngineFailure, match=r"ONNX Runtime failed on .*: broken"):
        engine.run(*pad_batch([scene]))


@pytest.mark.parametrize(("fault", "advice"), [("std::bad_alloc", "memory"), ("x", "rebuild")])
def test_a_graph_that_cannot_be_loaded_is_not_blamed_for_too_little_memory(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: str, advice: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(fault)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr(GraphCompiler, "compile", fail)

    for kind in ENGINES.values():
        with pytest.raises(ValueError, match=rf"cannot load it .*\); .*{advice}"):
            kind(Bundle.load(toy_bundle), threads=1)


def test_the_errors_of_onnx_runtime_are_those_that_it_defines() -> None:
    assert ort_native.InvalidArgument in onnxruntime_engine.RUNTIME_ERRORS
    assert ort_native.Fail in onnxruntime_engine.RUNTIME_ERRORS


def test_scores_that_are_not_finite_are_an_engine_failure(
    tmp_path: Path, scene: np.ndarray, kind: EngineName
) -> None:
    make_toy_bundle(tmp_path / "toy", graph=TOY_GRAPH.replace("white = {255.0}", "white = {0.0}"))
    engine = open_engine(Bundle.load(tmp_path / "toy"), engine=kind, threads=1)

    with pytest.raises(EngineFailure, match="finite"):
        engine.run(*pad_batch([scene]))


def test_boxes_that_are_not_finite_are_an_engine_failure(engine: Engine) -> None:
    images, only_padding = np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8), np.bool_)

    with pytest.raises(EngineFailure, match="finite"):
        engine.run(images, only_padding)


# --- which engine is opened


def detect_in_a_copy_of_the_service(
    tmp_path: Path, program: str
) -> subprocess.CompletedProcess[str]:
    """Run a program where the packages of the service are, but nothing that was built."""
    for name in ("service", "engines", "bundle", "plugins", "bundles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("cache"))
    return subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


DETECT = """
import logging
from pathlib import Path
import numpy as np
from bundle.manifest import Bundle
from engines.load import open_engine

logging.basicConfig(level="WARNING", format="%(message)s")
engine = open_engine(Bundle.load(Path("bundles/demo")), threads=1)
output = engine.run(np.full((1, 96, 128, 3), 99, np.uint8), np.zeros((1, 96, 128), np.bool_))
print(*engine.info, output.scores.shape)
"""


def test_without_openvino_the_service_runs_on_onnx_runtime_and_says_so(tmp_path: Path) -> None:
    blocked = "import sys\nsys.modules['openvino'] = None\n"

    result = detect_in_a_copy_of_the_service(tmp_path, blocked + DETECT)

    assert result.stdout == "onnxruntime fp32 fp32 standard 1 1 (1, 100)\n", result.stderr
    assert result.stderr.count("\n") == 1
    assert "OpenVINO cannot be imported" in result.stderr


def test_without_the_native_op_the_service_runs_the_standard_graph_and_says_so(
    tmp_path: Path,
) -> None:
    result = detect_in_a_copy_of_the_service(tmp_path, DETECT)

    assert result.stdout == "openvino fp32 fp32 standard 1 1 (1, 100)\n", result.stderr
    assert result.stderr.count("\n") == 1
    assert "is not built" in result.stderr
    assert "`make plugins`" in result.stderr


def test_an_engine_that_was_asked_for_is_not_replaced(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "engines.cpu.openvino_engine")

    with pytest.raises(ValueError, match=r"OpenVINO cannot be imported .*engine onnxruntime"):
        open_engine(Bundle.load(toy_bundle), engine="openvino")


def test_onnx_runtime_says_that_it_has_no_streams(
    toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.load(toy_bundle)

    engine = open_engine(bundle, engine="onnxruntime", threads=1, mode="throughput")

    assert engine.info.streams == 1
    assert "no throughput mode" in caplog.text


@pytest.mark.parametrize("module", ["engines.cpu.onnxruntime_engine", "export.graph.emulation"])
def test_onnx_runtime_writes_nothing_that_it_could_send(module: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, check=True)

    assert list(tmp_path.iterdir()) == []
