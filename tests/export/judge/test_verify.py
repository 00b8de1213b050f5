import json
import shutil

import numpy as np
import pytest
import torch

from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from bundle.preprocess import Preprocess
from engines.base import EngineInfo
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from export.judge.verify import (
    Difference,
    Tolerance,
    batches_allowed,
    difference,
    photographs,
    verify,
)
from model.config import ModelConfig, Variant
from model.configs import tiny
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel, torch_predictor


class TorchEngine:
    """The model itself behind the engine's interface; its first runs give smaller boxes."""

    name = "torch"
    info = EngineInfo("torch", "fp32", "fp32", "standard", threads=1, streams=1)
    max_batch_size = 8
    largest_batches = ()
    gpu_memory_bytes = 0
    runs_at_once = 1

    def __init__(self, model, num_wrong=0, shift=0.0):
        self.predict = torch_predictor(model)
        self.num_wrong = num_wrong
        self.shift = np.float32(shift)
        self.shapes = []

    def run(self, images, padding_mask):
        self.shapes.append(padding_mask.shape)
        scores, labels, boxes = self.predict(images, padding_mask)
        if len(self.shapes) <= self.num_wrong:
            boxes = boxes * 0.9
        return RawOutput(scores, labels, boxes + self.shift)

    def close(self):
        pass


def small_model(variant, **changes):
    config = tiny().model
    fields = {"variant": variant, "num_encoder_layers": 0, "num_decoder_layers": 1, **changes}
    torch.manual_seed(1)
    detector = DeformableDetr(ModelConfig(**{**vars(config), **fields}))
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "head" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return DetectionModel(detector, Preprocess(short_side=96, long_side=144, min_side=64)).eval()


def output(scores, labels, boxes):
    return RawOutput(
        np.array([scores], np.float32), np.array([labels]), np.array([boxes], np.float32)
    )


ONE, OTHER = [0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.9, 0.8]


def test_neighbours_of_equal_score_may_change_places():
    expected = output([0.9, 0.5, 0.5, 0.1], [0, 1, 2, 0], [ONE, ONE, OTHER, ONE])
    found = output([0.9, 0.5, 0.5, 0.1], [0, 2, 1, 0], [ONE, OTHER, ONE, ONE])

    assert difference(expected, found) == (0.0, 0.0, 0)


def test_equal_scores_at_the_end_of_the_list_may_be_other_detections():
    expected = output([0.9, 0.5, 0.5], [0, 1, 1], [ONE, ONE, OTHER])
    found = output([0.9, 0.5, 0.5], [0, 1, 2], [ONE, ONE, OTHER])

    assert difference(expected, found) == (0.0, 0.0, 1)


@pytest.mark.parametrize(
    "found",
    [
        output([0.9, 0.5, 0.1], [0, 1, 0], [ONE, [0.1, 0.1, 0.5, 0.51], OTHER]),
        output([0.9, 0.5, 0.1], [0, 2, 0], [ONE, ONE, OTHER]),
        output([0.9, 0.5, 0.1], [1, 0, 0], [ONE, ONE, OTHER]),
    ],
    ids=["a box moved", "another label", "labels exchanged"],
)
def test_another_box_or_label_above_the_end_of_the_list_is_a_difference(found):
    expected = output([0.9, 0.5, 0.1], [0, 1, 0], [ONE, ONE, OTHER])

    assert difference(expected, found).box_error >= 0.009


def test_a_box_a_little_off_is_an_error_at_the_end_of_the_list_too():
    expected = output([0.9, 0.5], [0, 1], [ONE, OTHER])
    found = output([0.9, 0.5], [0, 1], [ONE, [0.2, 0.3, 0.9, 0.805]])

    assert difference(expected, found).box_error == pytest.approx(0.005, rel=1e-3)


def test_a_list_that_is_mostly_another_one_is_not_an_exception():
    expected = output([0.5, 0.5, 0.5], [0, 1, 1], [ONE, ONE, OTHER])
    found = output([0.5, 0.5, 0.5], [0, 2, 2], [ONE, ONE, OTHER])

    assert difference(expected, found).box_error == 1.0


def test_the_tolerance_grows_with_the_rounding_of_the_model_but_not_without_end():
    assert Tolerance().widened(Difference(1e-7, 1e-7, 0)) == Tolerance()
    assert Tolerance().widened(Difference(1e-7, 5e-6, 0)).box == pytest.approx(5e-5)
    assert Tolerance().widened(Difference(1.0, 1.0, 0)) == (1e-3, 1e-3)


def test_a_difference_in_any_image_of_the_batch_counts():
    expected = RawOutput(*(np.concatenate((x, x)) for x in output([0.9], [0], [ONE])))
    found = expected._replace(scores=np.array([[0.9], [0.8]], np.float32))

    assert difference(expected, found).score_error == pytest.approx(0.1)


@pytest.mark.parametrize("variant", list(Variant))
def test_an_engine_like_the_model_passes_at_sizes_and_batches_of_every_kind(variant):
    model = small_model(variant)
    engine = TorchEngine(model)

    reports = verify(model, engine, preprocess=model.preprocess, images=[])

    assert [report["passed"] for report in reports] == [True] * 4
    assert sorted(shape[0] for shape in engine.shapes) == [1, 1, 3, 4]
    assert len({shape[1:] for shape in engine.shapes}) == 4
    assert any(height % 2 and width % 2 for _, height, width in engine.shapes)
    assert json.loads(json.dumps(reports)) == reports


def test_the_padded_batch_is_padded_even_where_every_image_is_square():
    model = small_model(Variant.BASE)
    square = [np.full((64, 64, 3), value, np.uint8) for value in (30, 90, 200)]

    reports = verify(model, TorchEngine(model), preprocess=model.preprocess, images=square)

    assert reports[1]["name"] == "padded batch"
    assert reports[1]["padding"] > 0.1


def test_the_model_in_float64_is_close_to_itself():
    model = small_model(Variant.TWO_STAGE)
    engine = TorchEngine(model, shift=3e-5)

    with pytest.raises(ValueError, match=r"boxes by 3.0e-05; tolerated are 1.0e-04 and 1.0e-05"):
        verify(model, engine, preprocess=model.preprocess, images=[])


@pytest.mark.parametrize("num_wrong", [1, 99])
def test_an_engine_that_gives_other_boxes_is_refused(num_wrong):
    model = small_model(Variant.REFINE)
    engine = TorchEngine(model, num_wrong)

    with pytest.raises(ValueError, match=r"does not do what the model does: one image, 1 x 96 x"):
        verify(model, engine, preprocess=model.preprocess, images=[])

    assert len(engine.shapes) == 1


def test_batches_are_compared_with_what_pytorch_says_of_each_image_alone():
    model = small_model(Variant.TWO_STAGE)
    engine = TorchEngine(model)
    engine.predict = as_if_padding_were_seen(engine.predict)

    reports = verify(model, engine, preprocess=model.preprocess, images=[])

    assert [report["passed"] for report in reports] == [True, False, False, True]
    assert [report.get("passed_alone") for report in reports] == [None, True, True, None]
    assert batches_allowed(reports) == "equal_shapes"


def test_an_engine_that_passes_everywhere_may_run_any_batch():
    model = small_model(Variant.BASE)

    reports = verify(model, TorchEngine(model), preprocess=model.preprocess, images=[])

    assert batches_allowed(reports) == "any"


def as_if_padding_were_seen(predict):
    """Other boxes wherever images of a batch differ in size."""

    def run(images, padding_mask):
        scores, labels, boxes = predict(images, padding_mask)
        factor = 0.9 if padding_mask.any() and len(images) > 1 else 1.0
        return RawOutput(scores, labels, np.float32(factor) * boxes)

    return run


def test_a_model_that_gives_no_numbers_is_refused_as_such():
    model = small_model(Variant.BASE)
    with torch.no_grad():
        model.detector.class_heads[0].bias.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"checkpoint's detections are not finite"):
        verify(model, TorchEngine(model), preprocess=model.preprocess, images=photographs())


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(Variant))
def test_a_graph_with_a_changed_weight_is_refused(exported, variant, tmp_path):
    small = exported(variant)
    directory = shutil.copytree(small.directory, tmp_path / "tampered")
    weights = np.fromfile(directory / "weights.bin", np.float32)
    weights[:: len(weights) // 20] *= 1.5
    weights.tofile(directory / "weights.bin")
    engine = OnnxRuntimeEngine(Bundle(directory, small.manifest))

    with pytest.raises(ValueError, match="does not do what the model does"):
        verify(small.model, engine, preprocess=small.manifest.preprocess, images=[])
