from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_native

from bundle.manifest import Manifest, TensorSpec
from bundle.preprocess import pad_batch
from service.engines.base import Engine
from service.engines.load import open_engine
from service.engines.onnxruntime_engine import RUNTIME_ERRORS, OnnxRuntimeEngine
from service.errors import EngineFailure
from tests.toy_bundle import TOY_GRAPH, make_toy_bundle


@pytest.fixture
def engine(toy_bundle: Path) -> Engine:
    return open_engine(toy_bundle, threads=1)[1]


def test_the_engine_finds_what_the_graph_finds(engine: Engine, scene: np.ndarray) -> None:
    output = engine.run(*pad_batch([scene]))

    assert (output.scores.dtype, output.labels.dtype, output.boxes.dtype) == ("f4", "i8", "f4")
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

    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_allclose(found[1], expected[0], atol=1e-6)


def test_name_and_batch_size_are_those_of_the_manifest(tmp_path: Path) -> None:
    make_toy_bundle(tmp_path / "toy", max_batch_size=3)

    manifest, engine = open_engine(tmp_path / "toy", threads=1)

    assert (engine.name, engine.max_batch_size) == (manifest.name, 3) == ("toy", 3)


def test_a_damaged_bundle_is_not_opened(tmp_path: Path) -> None:
    make_toy_bundle(tmp_path / "toy")
    (tmp_path / "toy" / "weights.bin").write_bytes(b"1234")

    with pytest.raises(ValueError, match=r"weights\.bin: expected SHA-256"):
        open_engine(tmp_path / "toy")


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    manifest = make_toy_bundle(tmp_path / "toy")
    (tmp_path / "toy" / "model.onnx").write_bytes(b"not a graph")

    with pytest.raises(ValueError, match=r"model\.onnx: ONNX Runtime cannot load .*`make export`"):
        OnnxRuntimeEngine(tmp_path / "toy", manifest)


def test_an_unknown_graph_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a graph 'plugin', got \['standard'\]"):
        OnnxRuntimeEngine(toy_bundle, Manifest.load(toy_bundle), graph="plugin")


def test_a_graph_unlike_its_manifest_is_refused(toy_bundle: Path) -> None:
    outputs = (TensorSpec(name="logits", dtype="float32", shape=(1,)),)
    manifest = Manifest.load(toy_bundle).model_copy(update={"outputs": outputs})

    with pytest.raises(ValueError, match=r"expected outputs \['logits'\], got \['boxes'"):
        OnnxRuntimeEngine(toy_bundle, manifest)


def test_an_error_of_the_runtime_is_an_engine_failure(engine: Engine) -> None:
    images, padding_mask = np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8), np.bool_)

    with pytest.raises(EngineFailure, match=r"ONNX Runtime failed on \(1, 8, 8, 4\)") as caught:
        engine.run(images, padding_mask)

    assert isinstance(caught.value.__cause__, ort_native.InvalidArgument)


def test_the_engine_goes_on_after_a_failure(engine: Engine, scene: np.ndarray) -> None:
    with pytest.raises(EngineFailure):
        engine.run(np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8), np.bool_))

    assert engine.run(*pad_batch([scene])).scores[0, 0] > 0.9


@pytest.mark.parametrize("kind", RUNTIME_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_runtime_is_translated(
    engine: Engine, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise kind("broken")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)

    with pytest.raises(EngineFailure, match="broken"):
        engine.run(*pad_batch([scene]))


def test_scores_that_are_not_finite_are_an_engine_failure(
    tmp_path: Path, scene: np.ndarray
) -> None:
    make_toy_bundle(tmp_path / "toy", graph=TOY_GRAPH.replace("white = {255.0}", "white = {0.0}"))
    _, engine = open_engine(tmp_path / "toy", threads=1)

    with pytest.raises(EngineFailure, match="finite"):
        engine.run(*pad_batch([scene]))


def test_boxes_that_are_not_finite_are_an_engine_failure(engine: Engine) -> None:
    images, only_padding = np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8), np.bool_)

    with pytest.raises(EngineFailure, match="finite"):
        engine.run(images, only_padding)
