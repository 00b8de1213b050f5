import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Batches, Bundle
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from bundle.tensorrt_plan import ShapeProfile, default_profiles
from engines.base import EngineFailure
from engines.compiled_cache import keep_compiled
from engines.cpu import openvino_compile
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.load import EngineName, GpuOptions, open_engine
from engines.self_check import WrongAnswers, require_known_answers, self_check
from tests.engines.conftest import built_shapes
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT
from tests.faults import FAULTS, Fault, FaultyEngine
from tests.toy_bundle import SCALED_GRAPH, TOY_PREPROCESS, make_toy_bundle


@pytest.fixture
def right(toy_bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(Bundle.load(toy_bundle), threads=1)


@pytest.mark.parametrize("bundle", ["demo", "bccd"])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_the_bundles_of_the_repository_give_their_known_answers(
    tmp_path: Path, bundle: str, name: EngineName
) -> None:
    copy = shutil.copytree(  # engines keep what they compiled in it
        Path("bundles", bundle), tmp_path / bundle, ignore=shutil.ignore_patterns("cache")
    )
    loaded = Bundle.load(copy)

    outcomes, _ = require_known_answers(open_engine(loaded, engine=name, threads=1), loaded)

    assert len(outcomes) >= 3


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_of_a_cpu_give_the_known_answers(toy_bundle: Path, name: EngineName) -> None:
    bundle = Bundle.load(toy_bundle)
    engine = open_engine(bundle, engine=name, threads=1)

    outcomes, _ = require_known_answers(engine, bundle)

    assert [outcome.image for outcome in outcomes] == [
        "image 1 (64x85) alone",
        "image 2 (48x53) alone",
        "image 3 (48x53) alone",
        "image 1 (64x85) in row 1 of 4",
        "image 2 (48x53) in row 2 of 4, padded to 64x85",
        "image 3 (48x53) in row 3 of 4, padded to 64x85",
        "image 1 (64x85) in row 4 of 4",
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
        self.max_batch_size, self.gpu_memory_bytes, self.runs_at_once = max_batch_size, 0, 1
        self.largest_batches = ()
        self.shapes: list[tuple[int, ...]] = []
        self._right = right

    def run(self, images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        self.shapes.append(padding_mask.shape)
        return self._right.run(images, np.zeros_like(padding_mask))


@pytest.mark.parametrize(
    ("max_batch_size", "batches", "wrong"),
    [
        (4, [4], ["image 2 (48x53) in row 2 of 4", "image 3 (48x53) in row 3 of 4"]),
        (2, [2, 1], ["image 2 (48x53) in row 2 of 2", "image 3 (48x53) alone"]),
        (1, [1, 1], ["image 2 (48x53) alone", "image 3 (48x53) alone"]),
    ],
)
def test_padded_images_are_compared_with_what_they_are_alone(
    toy_bundle: Path,
    right: OnnxRuntimeEngine,
    max_batch_size: int,
    batches: list[int],
    wrong: list[str],
) -> None:
    engine = PaddingCounts(right, max_batch_size)

    outcomes, _ = self_check(engine, Bundle.load(toy_bundle))

    assert [outcome.image for outcome in outcomes if not outcome.has_passed] == [
        f"{name}, padded to 64x85" for name in wrong
    ]
    assert engine.shapes[3:] == [(batch, 64, 85) for batch in batches]


@pytest.mark.parametrize("row", range(1, 8))
@pytest.mark.parametrize("batches", ["any", "equal_shapes"])
def test_an_engine_that_is_wrong_in_one_row_of_its_largest_batch_is_refused(
    toy_bundle: Path, right: OnnxRuntimeEngine, row: int, batches: Batches
) -> None:
    def spoil_row(output: RawOutput, _: BoolArray) -> RawOutput:
        output.scores[row:][:1] = 0
        return output

    bundle = Bundle.load(toy_bundle).with_manifest(batches=batches)
    engine = FaultyEngine(right, spoil_row)
    engine.max_batch_size = 8

    with pytest.raises(WrongAnswers, match=rf"image \d \(\w+\) in row {row + 1} of 8"):
        require_known_answers(engine, bundle)


def test_no_batch_is_larger_than_those_that_will_be_served(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    engine = PaddingCounts(right, max_batch_size=4)

    self_check(engine, Bundle.load(toy_bundle), max_batch_size=2, at_full_size=True)

    assert max(shape[0] for shape in engine.shapes) == 2


@pytest.fixture
def large_bundle(toy_bundle: Path) -> Bundle:
    """The toy bundle for larger photographs; its known answers are as small as before."""
    bundle = Bundle.load(toy_bundle)
    preprocess = bundle.manifest.preprocess.model_copy(update={"short_side": 96, "long_side": 160})
    return bundle.with_manifest(preprocess=preprocess)


@pytest.mark.parametrize("num_images", [1, 2])
def test_an_engine_that_is_wrong_at_the_size_of_photographs_only_is_refused(
    large_bundle: Bundle, right: OnnxRuntimeEngine, num_images: int
) -> None:
    def spoil_photographs(output: RawOutput, padding_mask: BoolArray) -> RawOutput:
        is_spoilt = padding_mask.shape == (num_images, 96, 128)
        return output._replace(scores=output.scores * np.float32(not is_spoilt))

    engine = FaultyEngine(right, spoil_photographs)

    require_known_answers(engine, large_bundle)
    with pytest.raises(WrongAnswers, match="padded to 96x128"):
        require_known_answers(engine, large_bundle, at_full_size=True)


def test_a_bundle_that_is_served_in_equal_shapes_is_tried_without_padding(
    large_bundle: Bundle, right: OnnxRuntimeEngine
) -> None:
    bundle = large_bundle.with_manifest(batches="equal_shapes")
    engine = PaddingCounts(right, max_batch_size=4)

    require_known_answers(engine, bundle, at_full_size=True)

    assert engine.shapes[3:] == [(4, 48, 53), (1, 96, 128), (2, 96, 128)]


def test_shapes_that_ran_are_not_run_again_to_warm_up(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    engine = PaddingCounts(right, max_batch_size=4)

    self_check(engine, Bundle.load(toy_bundle), at_full_size=True)

    assert engine.shapes == [(1, 64, 85), (1, 48, 53), (1, 48, 53), (4, 64, 85)]


def test_an_engine_that_fails_on_a_known_image_is_reported_with_the_image(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    def fail(*_: object) -> RawOutput:
        raise EngineFailure("out of memory")

    engine = FaultyEngine(right, fail)

    with pytest.raises(EngineFailure, match="known answers, batch of 1 at 64x85: out of memory"):
        self_check(engine, Bundle.load(toy_bundle))


def first_two(output: RawOutput, _: BoolArray) -> RawOutput:
    return RawOutput(output.scores[:, :2], output.labels[:, :2], output.boxes[:, :2])


def test_an_engine_with_another_number_of_detections_is_refused(
    toy_bundle: Path, right: OnnxRuntimeEngine
) -> None:
    engine = FaultyEngine(right, first_two)

    with pytest.raises(WrongAnswers, match="detections: expected 3, got 2"):
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
        patched.setattr(openvino_compile, "keep_compiled", keep_other)
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

    require_known_answers(engine, bundle, at_full_size=True)

    assert engine.info.runtime == "tensorrt"
    engine.close()


@pytest.mark.parametrize("profile", default_profiles(TOY_PREPROCESS))
def test_a_plan_that_is_wrong_in_one_profile_only_is_found_out(
    planned: Callable[..., Path], profile: ShapeProfile
) -> None:
    def spoil_profile(output: RawOutput, padding_mask: BoolArray) -> RawOutput:
        is_spoilt = padding_mask.shape == profile.max
        return output._replace(scores=output.scores * np.float32(not is_spoilt))

    bundle = Bundle.load(planned())
    engine = FaultyEngine(open_engine(bundle), spoil_profile)
    _, height, width = profile.max

    with pytest.raises(WrongAnswers, match=f"padded to {height}x{width}"):
        require_known_answers(engine, bundle, at_full_size=True)

    engine.close()
