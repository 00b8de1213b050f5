"""What reduced precision costs: bundles measured as they are served, and how far AP may drop."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bundle.manifest import Bundle
from engines.base import EngineInfo
from engines.load import open_engine
from export.judge.refusal import Refused
from model.data.evaluation_data import EvaluationData
from model.evaluation.coco_metrics import Metrics
from model.evaluation.evaluation import evaluate
from model.network.boxes import generalised_iou

MAX_AP_DROP = 0.005
MIN_AP = 0.05  # in float32: a drop from less says nothing
# A sure detection is found again if another of its class has this IoU with it and half SURE_SCORE.
SURE_SCORE = 0.5
SAME_IOU = 0.75

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """How a bundle did on the validation images."""

    metrics: Metrics
    engine: EngineInfo
    seconds: float


def measure(bundle: Bundle, dataset: EvaluationData) -> Measured:
    """Evaluate a bundle in the engine that serves it, in bf16 even if float32 is faster here."""
    manifest, engine = bundle.manifest, open_engine(bundle, float_type="bf16")
    log.info("AP in %s, images: %d ...", manifest.precision, len(dataset))
    start = time.perf_counter()
    try:
        metrics = evaluate(
            engine.run, dataset, preprocess=manifest.preprocess, classes=manifest.classes
        )
    finally:
        engine.close()
    measured = Measured(metrics, engine.info, time.perf_counter() - start)
    numbers = metrics.numbers
    log.info("  AP %.4f, AP50 %.4f, took %.0f s", numbers["AP"], numbers["AP50"], measured.seconds)
    return measured


def require_computable(bundle: Bundle) -> None:
    """Raise ValueError if the engine cannot compute a bundle in its precision on this machine."""
    precision, engine = bundle.manifest.precision, open_engine(bundle, float_type="bf16")
    engine.close()
    if engine.info.precision != precision:
        raise ValueError(
            f"{engine.info.runtime} computes {precision} in {engine.info.precision} on "
            f"this machine, so AP in {precision} cannot be measured; export on a machine "
            "like the one that serves, or in fp32"
        )


def require_judgeable(before: Measured) -> None:
    """Raise ValueError if AP in float32 is too low for a drop to say anything."""
    exact = before.metrics.numbers["AP"]
    if not exact >= MIN_AP:  # NaN if no image has a box
        raise ValueError(
            f"the AP in fp32 is {exact:.4f}; expected at least {MIN_AP}, to judge a drop by: train "
            "the model first, or give the data that it was trained for"
        )


def require_kept(before: Measured, after: Measured, *, precision: str) -> None:
    """Raise Refused if AP drops too far from float32."""
    exact, reduced = before.metrics.numbers["AP"], after.metrics.numbers["AP"]
    if exact - reduced > MAX_AP_DROP:
        raise Refused(
            f"AP in {precision} is {reduced:.4f}, in fp32 {exact:.4f}: a drop of "
            f"{exact - reduced:.4f} where {MAX_AP_DROP} is allowed"
        )


def compare(
    before: Measured, after: Measured, *, precision: str, num_images: int
) -> dict[str, Any]:
    """The comparison, as an entry of the report."""
    share = share_found_again(before.metrics.results, after.metrics.results)
    drop = before.metrics.numbers["AP"] - after.metrics.numbers["AP"]
    log.info("  AP changes by %+.4f; a drop of %s is allowed", -drop, MAX_AP_DROP)
    if share is not None:
        log.info("  %.1f%% of detections above a score of %s remain", 100 * share, SURE_SCORE)
    return {
        "images": num_images,
        "drop": drop,
        "agreement": share,
        **{
            name: {
                "AP": measured.metrics.numbers["AP"],
                "AP50": measured.metrics.numbers["AP50"],
                "seconds": round(measured.seconds, 1),
                "engine": measured.engine._asdict(),
            }
            for name, measured in (("fp32", before), (precision, after))
        },
    }


def share_found_again(
    expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]
) -> float | None:
    """The share of sure detections that another bundle also makes; None if none is sure.

    Both in COCO's results format.
    """
    candidates = defaultdict(list)
    for one in found:
        if one["score"] >= SURE_SCORE / 2:
            candidates[one["image_id"], one["category_id"]].append(one["bbox"])
    sure = [one for one in expected if one["score"] >= SURE_SCORE]
    is_found = [
        _is_among(one["bbox"], candidates[one["image_id"], one["category_id"]]) for one in sure
    ]
    return sum(is_found) / len(sure) if sure else None


def _is_among(box: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    boxes = torch.tensor([box, *others], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    iou, _ = generalised_iou(boxes[:1], boxes[1:])
    return bool((iou >= SAME_IOU).any())
