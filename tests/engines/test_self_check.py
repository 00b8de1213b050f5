import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from engines.base import EngineFailure
from engines.compiled_cache import keep_compiled
from engines.cpu import openvino_engine
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.load import EngineName, GpuOptions, open_engine
from engines.self_check import WrongAnswers, require_known_answers, self_check
from tests.engines.conftest import built_shapes
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT
from tests.faults import FAULTS, Fault, FaultyEngine
from tests.toy_bundle import SCALED_GRAPH, make_toy_bundle


@pytest.fixture
def right(toy_bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(Bundle.load(toy_bundle), threads=1)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_of_a_cpu_give_the_known_answers(toy_bundle: Path, name: EngineName) -> None:
    bundle = Bundle.load(toy_bundle)
    engine = open_engine(bundle, engine=name, threads=1)

    outcomes = require_known_answers(engine, bundle)

    assert [outcome.image for outcome in outcomes] == [
        "image 1 (64x85) alone",
        "image 2 (48x53) alone",
        "image 3 (48x53) alone",
        "image 1 (64x85) padded",
        "image 2 (48x53) padded",
        "image 3 (48x53) padded",
    ]
    assert max(max(outcome.ratios) for outcome in outcomes) < 0.01
    engine.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_is_silently_wrong_is_refused_with_image_answers_and_remedy(
    toy_bundle: Path, right: OnnxRuntimeEngine, fault: Fault
) -> None:
    engine = FaultyEngine(right, fault)

    with pytest.raises(
        WrongAnswers,
        match=r"onnxruntime \(fp32, graph standard\) does not give .*image 1 \(64x85\) alone, .*"
        r"FAILED; expected \w+ 0\.\d+ at \[.*\] px, got .*`python -m service\.selftest --bundle "
        r".*toy`; remove .*cache if .*`make export`",
    ):
        require_known_answers(engine, Bundle.load(toy_bundle))


class PaddingCounts:
    """An engine that is right about images alone, and takes padding for part of the others."""

    def __init__(self, right: OnnxRuntimeEngine, max_batch_size: int) -> None:
        self.name, self.info, self.close = right.name, right.info, right.close
        self.max_batch_size, self.gpu_memory_bytes = max_batch_size, 0
        self.batch_sizes: list[int] = []
        self._right = right

    def run(self, images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        self.batch_sizes.append(len(images))
        return self._right.run(images, np.zeros_like(padding_mask))


@pytest.mark.parametrize(("max_batch_size", "sizes"), [(4, [1, 1, 1, 3]), (2, [1, 1, 1, 2, 1])])
def test_padded_images_are_compared_with_what_they_are_alone(
    toy_bundle: Path, right: OnnxRuntimeEngine, max_batch_size: int, sizes: list[int]
) -> None:
    engine = PaddingCounts(right, max_batch_size)

    outcomes = self_check(engine, Bundle.load(toy_bundle))

    assert [outcome.image for outcome in outcomes if not outcome.has_passed] == [
        "image 2 (48x53) padded",
        "image 3 (48x53) padded",
    ]
    assert engine.batch_sizes == sizes


def nothing_behind_two_images(output: RawOutput, _: BoolArray) -> RawOutput:
    scores = output.scores.copy()
    scores[2:] = 0
    return output._replace(scores=scores)


def test_an_engine_that_is_wrong_in_batches_of_three_only_is_refused(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    engine = FaultyEngine(right, nothing_behind_two_images)

    with pytest.raises(WrongAnswers, match=r"image 3 \(48x53\) padded"):
        require_known_answers(engine, Bundle.load(toy_bundle))


def test_a_bundle_that_is_served_in_equal_shapes_is_tried_alone_only(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    bundle = Bundle.load(toy_bundle).with_manifest(batches="equal_shapes")
    engine = PaddingCounts(right, max_batch_size=4)

    outcomes = require_known_answers(engine, bundle)

    assert len(outcomes) == 3


def test_an_engine_that_fails_on_a_known_image_is_reported_with_the_image(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    def fail(*_: object) -> RawOutput:
        raise EngineFailure("out of memory")

    engine = FaultyEngine(right, fail)

    with pytest.raises(EngineFailure, match=r"image 1 \(64x85\) of the known answers: out of mem"):
        self_check(engine, Bundle.load(toy_bundle))


def first_two(output: RawOutput, _: BoolArray) -> RawOutput:
    return RawOutput(output.scores[:, :2], output.labels[:, :2], output.boxes[:, :2])


def test_an_engine_with_another_number_of_detections_is_refused(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    engine = FaultyEngine(right, first_two)

    with pytest.raises(WrongAnswers, match="expected 3 detections, got 2"):
        require_known_answers(engine, Bundle.load(toy_bundle))


def test_a_compiled_graph_of_other_weights_in_the_cache_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy_bundle(tmp_path / "other", graph=SCALED_GRAPH)
    open_engine(Bundle.load(tmp_path / "other"), engine="openvino", threads=1).close()
    (kept,) = (tmp_path / "other" / "cache").glob("*.openvino")
    make_toy_bundle(tmp_path / "toy")
    bundle = Bundle.load(tmp_path / "toy")

    def keep_other(bundle: Path, name: str, *, key: str, export: object) -> None:
        keep_compiled(bundle, name, key=key, export=lambda: memoryview(kept.read_bytes()))

    with monkeypatch.context() as patched:  # as if another process had written it, checksum and all
        patched.setattr(openvino_engine, "keep_compiled", keep_other)
        open_engine(bundle, engine="openvino", threads=1).close()

    engine = open_engine(bundle, engine="openvino", threads=1)

    with pytest.raises(WrongAnswers, match=rf"remove {bundle.directory}/cache"):
        require_known_answers(engine, bundle)
    engine.close()
    shutil.rmtree(bundle.directory / "cache")
    engine = open_engine(bundle, engine="openvino", threads=1)
    require_known_answers(engine, bundle)
    engine.close()


def test_a_plan_that_was_built_wrong_is_found_out(
    planned: Callable[..., Path], trt: FakeTensorRT, tmp_path: Path
) -> None:
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)
    bundle = Bundle.load(planned())
    assert bundle.manifest.tensorrt is not None
    shapes = built_shapes(bundle.manifest, bundle.manifest.tensorrt.profiles)
    plan = trt.make_plan(tmp_path / "wrong" / "model.onnx", profiles=shapes)
    (bundle.directory / bundle.manifest.tensorrt.file).write_bytes(plan)
    bundle = bundle.save()
    engine = open_engine(bundle)

    with pytest.raises(WrongAnswers, match=r"tensorrt \(fp32, graph standard\) does not give"):
        require_known_answers(engine, bundle)

    engine.close()


def test_a_plan_that_is_built_wrong_at_start_is_found_out(
    cuda: FakeCuda, trt: FakeTensorRT, tmp_path: Path
) -> None:
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)
    bundle = Bundle.load(tmp_path / "wrong")
    gpu = GpuOptions(may_build=True)
    engine = open_engine(bundle, engine="tensorrt", gpu=gpu)

    with pytest.raises(WrongAnswers, match=r"tensorrt \(fp32, graph standard\) does not give"):
        require_known_answers(engine, bundle)

    engine.close()


def test_a_plan_of_the_bundle_gives_the_known_answers(planned: Callable[..., Path]) -> None:
    bundle = Bundle.load(planned())
    engine = open_engine(bundle)

    outcomes = require_known_answers(engine, bundle)

    assert engine.info.runtime == "tensorrt"
    assert len(outcomes) == 6
    engine.close()
