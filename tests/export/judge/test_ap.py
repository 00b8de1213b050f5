import numpy as np
import pytest

from bundle.manifest import Bundle
from engines.base import EngineInfo
from export.judge.ap import (
    Measured,
    compare,
    require_computable,
    require_judgeable,
    require_kept,
    share_found_again,
)
from export.judge.refusal import Refused
from model.evaluation.coco_metrics import Metrics


def measured(ap, results=()):
    numbers = {"AP": ap, "AP50": ap}
    engine = EngineInfo("openvino", "int8", "fp32", "plugin", threads=1, streams=1)
    metrics = Metrics(numbers, (), list(results), {}, None, {}, np.empty(0), np.empty(0))
    return Measured(metrics, engine, seconds=1.0)


def detection(score=0.9, category_id=1, image_id=1, bbox=(10, 10, 40, 20)):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


# The toy bundle has only the graph in standard operators, which is never computed in bf16.
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_precision_that_the_engine_computes_in_can_be_measured(toy_bundle, precision):
    require_computable(Bundle.load(toy_bundle).with_manifest(precision=precision))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_engine_replaces_cannot_be_measured(toy_bundle, precision):
    bundle = Bundle.load(toy_bundle).with_manifest(precision=precision)

    with pytest.raises(ValueError, match=f"openvino computes {precision} in fp32 on this machine"):
        require_computable(bundle)


@pytest.mark.parametrize("reduced", [0.4, 0.3951, 0.45])
def test_a_drop_of_half_a_point_is_allowed(reduced):
    require_kept(measured(0.4), measured(reduced), precision="int8")


def test_a_larger_drop_is_refused_with_both_numbers():
    with pytest.raises(Refused, match=r"0.3940, in fp32 0.4000: a drop of 0.0060 where 0.005 is"):
        require_kept(measured(0.4), measured(0.394), precision="int8")


@pytest.mark.parametrize("ap", [0.0, 0.0499, float("nan")])
def test_a_model_that_finds_next_to_nothing_cannot_be_judged(ap):
    with pytest.raises(ValueError, match="train the model first, or give the data"):
        require_judgeable(measured(ap))


def test_a_model_that_finds_a_little_can_be_judged():
    require_judgeable(measured(0.05))


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"bbox": (15, 10, 40, 20)}, 1.0),  # IoU 0.78
        ({"bbox": (16, 10, 40, 20)}, 0.0),  # IoU 0.74
        ({"score": 0.25}, 1.0),
        ({"score": 0.24}, 0.0),
    ],
)
def test_a_detection_is_found_again_with_most_of_its_box_and_half_a_sure_score(changes, share):
    assert share_found_again([detection(score=0.5)], [detection(**changes)]) == share


def test_a_detection_is_found_again_where_class_and_box_agree():
    sure = [detection(), detection(image_id=2), detection(category_id=2)]
    moved = detection(bbox=(11, 11, 40, 20), score=0.7)

    assert share_found_again(sure, sure) == 1.0
    assert share_found_again(sure, [moved]) == pytest.approx(1 / 3)
    assert share_found_again(sure, [detection(bbox=(25, 10, 40, 20))]) == 0.0
    assert share_found_again(sure, [detection(score=0.2)]) == 0.0
    assert share_found_again(sure, []) == 0.0


def test_detections_that_were_unsure_before_are_not_asked_for():
    assert share_found_again([detection(), detection(score=0.4, image_id=2)], [detection()]) == 1.0
    assert share_found_again([detection(score=0.4)], []) is None


def test_the_report_has_both_aps_what_ran_and_how_long():
    before, after = measured(0.4, [detection()]), measured(0.398, [detection()])

    report = compare(before, after, precision="int8", num_images=20)

    assert report["images"] == 20
    assert report["drop"] == pytest.approx(0.002)
    assert report["agreement"] == 1.0
    assert report["fp32"]["AP"] == report["fp32"]["AP50"] == 0.4
    assert report["int8"]["AP"] == 0.398
    assert report["int8"]["seconds"] == 1.0
    assert report["int8"]["engine"]["runtime"] == "openvino"
