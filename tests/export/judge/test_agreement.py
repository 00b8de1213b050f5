import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.manifest import Bundle, Manifest
from bundle.postprocess import RawOutput
from bundle.preprocess import Preprocess, decode_image
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from export.graph.emulation import Magnitude
from export.judge.agreement import compare, judge_engine, judge_rounding, require_held
from export.judge.refusal import Refused
from export.judge.verify import photographs

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "bundles" / "demo"  # two_stage, trained
PHOTOS = sorted((ROOT / "tests" / "data" / "coco_fixture12").rglob("*.jpg"))


def read(files):
    return [decode_image(file.read_bytes()) for file in files]


def scale_weights(directory, name, factor):
    """Change the weights of one layer in every graph of a bundle."""
    manifest = Manifest.load(directory)
    for file in manifest.graphs.values():
        model = onnx.load(directory / file)
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        scaled = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(scaled, name))
        onnx.save(model, directory / file)
    manifest.save(directory)


@pytest.fixture
def demo(tmp_path):
    """A copy of the demo bundle, float32."""
    directory = tmp_path / "demo"
    return Path(shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache")))


def test_a_trained_model_finds_the_same_in_float16(demo):
    samples = sorted((demo / "samples").iterdir())

    report = judge_rounding(Bundle.load(demo), "fp16", images=[*read(samples), *read(PHOTOS)])

    assert report["share"] >= 0.99
    assert report["box_error_px"] < 0.5
    assert report["score_error"] < 0.05  # docs/numerics.md
    assert report["detections"] == 100 * (len(samples) + len(PHOTOS))
    assert 1 < report["largest"][0]["largest"] < 1000


def test_numbers_that_float16_cannot_hold_are_refused_with_their_place(demo):
    scale_weights(demo, "detector.backbone.layer1.0.conv1.weight", 5e4)

    with pytest.raises(Refused, match=r"numbers reach .* in backbone.layer1.0.conv1 \(Conv\)"):
        judge_rounding(Bundle.load(demo), "fp16", images=photographs()[:1])


@pytest.mark.parametrize(
    ("precision", "largest"),
    [("fp16", 59_999.0), ("fp16", 60_000.0), ("bf16", 2.999e38), ("bf16", 3e38)],
)
def test_numbers_up_to_a_little_less_than_a_type_holds_are_accepted(precision, largest):
    require_held([Magnitude(1.0, "Conv", "stem"), Magnitude(largest, "MatMul", "head")], precision)


@pytest.mark.parametrize(
    ("precision", "largest"),
    [
        ("fp16", 60_001.0),
        ("fp16", float("inf")),
        ("fp16", float("nan")),
        ("bf16", 3.001e38),
        ("bf16", float("inf")),
        ("bf16", float("nan")),
    ],
)
def test_larger_numbers_are_refused_with_their_place(precision, largest):
    magnitudes = [Magnitude(1.0, "Conv", "stem"), Magnitude(largest, "MatMul", "head")]

    with pytest.raises(Refused, match=rf"reach .* in head \(MatMul\), more than {precision} holds"):
        require_held(magnitudes, precision)


def test_detections_that_change_are_refused(demo, monkeypatch):
    monkeypatch.setattr("export.judge.agreement.SAME_BOX_PX", 1e-4)

    with pytest.raises(Refused, match=r"in fp16, .*% of the detections change, where 1%"):
        judge_rounding(Bundle.load(demo), "fp16", images=photographs()[:1])


@pytest.mark.parametrize(
    ("label", "shift", "last", "share"),
    [
        (3, 0.0, 0.0, 1.0),
        (3, 0.004, 0.0, 1.0),
        (3, 0.006, 0.0, 0.75),
        (4, 0.0, 0.0, 0.75),
        (3, 0.0, 0.1, 1.0),
        (3, 0.006, 0.1, 2 / 3),
    ],
    ids=["the same", "near", "far", "another class", "last is another", "both"],
)
def test_a_detection_is_the_same_within_half_a_pixel(label, shift, last, share):
    boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.6, 0.8]] * 2, np.float32)
    moved = boxes + np.array([[0.0], [shift], [0.0], [last]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    exact = RawOutput(scores, np.array([[1, 3, 1, 2]]), boxes[None])
    other = RawOutput(scores, np.array([[2, 1, label, 1]]), moved[None, ::-1])
    preprocess = Preprocess(short_side=100, long_side=100)
    image = np.zeros((100, 100, 3), np.uint8)

    found = compare(lambda *_: exact, lambda *_: other, images=[image], preprocess=preprocess)

    assert found.share == share
    assert found.detections == 4


LANDSCAPE = np.zeros((200, 400, 3), np.uint8)
HALVED = Preprocess(short_side=100, long_side=200)
SCORES = [0.9, 0.8, 0.69, 0.6]
BOX = [0.1, 0.1, 0.5, 0.5]


def output(*, scores=SCORES, moved=(), by=(0.0, 0.0, 0.0, 0.0)):
    """Four detections of four classes; those of some ranks have another box."""
    boxes = np.array([BOX] * 4, np.float32)
    boxes[list(moved)] += np.array(by, np.float32)
    return RawOutput(np.array([scores], np.float32), np.arange(4)[None], boxes[None])


def compared(*pairs):
    """The agreement of pairs of outputs, exact and other, each for a landscape."""
    exact, other = (iter(outputs) for outputs in zip(*pairs, strict=True))
    return compare(
        lambda *_: next(exact),
        lambda *_: next(other),
        images=[LANDSCAPE] * len(pairs),
        preprocess=HALVED,
    )


@pytest.mark.parametrize(
    ("by", "share"),
    [
        ((0.0024, 0, 0, 0), 1.0),  # of 200 pixels
        ((0, 0, 0.0026, 0), 0.75),
        ((0, 0.0048, 0, 0), 1.0),  # of 100 pixels
        ((0, 0, 0, 0.0052), 0.75),
    ],
)
def test_half_a_pixel_is_one_of_the_resized_image_in_any_coordinate(by, share):
    assert compared((output(), output(moved=[0], by=by))).share == share


def test_errors_are_the_largest_of_all_images():
    less_sure = output(scores=[0.9, 0.7, 0.69, 0.6], moved=[1], by=(0.002, 0, 0, 0))

    found = compared((output(), less_sure), (output(), output(moved=[0], by=[0.1] * 4)))

    assert found.score_error == pytest.approx(0.1)
    assert found.box_error_px == pytest.approx(0.4, abs=1e-4)  # of those that agree
    assert found.share == 7 / 8


def test_what_an_equal_score_displaces_does_not_count():
    shifted = [score - 0.05 for score in SCORES]  # so 0.69 and 0.6 may have changed places

    found = compared((output(), output(scores=shifted, moved=[2], by=[0.1] * 4)))

    assert (found.share, found.num_at_cut, found.detections) == (1.0, 1, 4)


def test_where_equal_scores_displaced_most_all_of_it_counts():
    equal = [0.5] * 4

    found = compared((output(scores=equal), output(scores=equal, moved=range(4), by=[0.1] * 4)))

    assert (found.share, found.num_at_cut) == (0.0, 0)


class SwervingEngine:
    """An engine of a bundle whose first runs give the most certain detection another box."""

    largest_batches = ()
    gpu_memory_bytes = 0
    runs_at_once = 1

    def __init__(self, bundle, num_wrong):
        self.engine = OnnxRuntimeEngine(bundle)
        self.name, self.info = self.engine.name, self.engine.info
        self.max_batch_size = self.engine.max_batch_size
        self.num_wrong = num_wrong
        self.num_runs = 0

    def run(self, images, padding_mask):
        output = self.engine.run(images, padding_mask)
        if self.num_runs < self.num_wrong:
            output.boxes[0, 0] += 0.5
        self.num_runs += 1
        return output

    def close(self):
        self.engine.close()


def coloured_photo():
    """Three detections of the toy bundle, with scores far apart."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[2:8, 2:8] = (250, 200, 150)
    return image


def test_a_plan_may_change_one_detection_in_a_hundred(toy_bundle):
    bundle = Bundle.load(toy_bundle)

    report = judge_engine(bundle, SwervingEngine(bundle, 1), images=[coloured_photo()] * 34)

    assert report["detections"] == 102
    assert report["share"] == pytest.approx(101 / 102)


def test_a_plan_that_changes_more_is_refused(toy_bundle):
    bundle = Bundle.load(toy_bundle)

    with pytest.raises(Refused, match=r"in the plan, 2\.0% of the detections change, where 1%"):
        judge_engine(bundle, SwervingEngine(bundle, 2), images=[coloured_photo()] * 34)
