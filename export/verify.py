"""Runs the engine that serves against PyTorch on photographs; refuses a graph that differs.

Sizes and batch sizes are none of those seen in tracing: an exporter that takes an example's size
for a constant gives wrong numbers at other sizes, and no error.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import skimage
from torch import Tensor, nn

from bundle.preprocess import Preprocess, decode_image, pad_batch, prepare
from model.evaluate import torch_predictor
from model.inference import DetectionModel
from model.queries import ProposalQueries
from service.engines.base import Engine, RawOutput

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-5  # of the image's width or height
# Proposals whose logits are closer than this at the cut may be taken for each other.
PROPOSAL_GAP = 1e-4
MAX_ATTEMPTS = 4  # with other photographs, where the cut is as close as that

Image = npt.NDArray[np.uint8]
_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Input of one comparison: images (B, H, W, 3) uint8 and padding_mask (B, H, W) bool."""

    name: str
    images: Image
    padding_mask: npt.NDArray[np.bool_]


class Difference(NamedTuple):
    """How far two outputs for the same batch are apart.

    score_error: largest difference of scores of equal rank. box_error: largest difference of a
    coordinate between matched boxes. num_at_cut: detections that only one output holds, because
    others of the same score took their place at the end of the list.
    """

    score_error: float
    box_error: float
    num_at_cut: int


def verify(
    model: DetectionModel, engine: Engine, preprocess: Preprocess, images: Sequence[Image]
) -> list[dict[str, Any]]:
    """Compare engine and model on batches made of the images; returns a report of each.

    Args:
        preprocess: of the bundle.
        images: (H, W, 3) uint8 RGB of any size; scikit-image's photographs are added.

    Raises:
        ValueError: they differ by more than the tolerance, or the model's output is not finite.
    """
    photos = [*images, *photographs()]
    reports = []
    for make_batch in (_single, _padded, _odd, _smallest):
        for attempt in range(MAX_ATTEMPTS):
            report = _check(model, engine, make_batch(photos, preprocess))
            reports.append(report)
            log.info("  %s", describe(report))
            if report["passed"]:
                break
            photos = [*photos[1:], photos[0]]
            gap = report["proposal_gap"]
            if gap is None or gap >= PROPOSAL_GAP or attempt + 1 == MAX_ATTEMPTS:
                raise ValueError(
                    f"the exported graph does not do what the model does: {describe(report)}; "
                    f"tolerated are {SCORE_TOLERANCE:g} for scores and {BOX_TOLERANCE:g} for boxes"
                )
    return reports


def describe(report: dict[str, Any]) -> str:
    """One line on one comparison."""
    batch, height, width = report["shape"]
    return (
        f"{report['name']}, {batch} x {height} x {width}: scores differ by "
        f"{report['score_error']:.1e}, boxes by {report['box_error']:.1e}"
    )


def difference(expected: RawOutput, found: RawOutput) -> Difference:
    """How far two outputs are apart; detections are matched by label and score.

    Those of (nearly) equal score may come in any order, and at the end of the list one may have
    pushed out another.
    """
    if expected.scores.shape != found.scores.shape:
        raise ValueError(f"expected {expected.scores.shape} scores, got {found.scores.shape}")
    rows = [
        _row_difference(RawOutput(*one), RawOutput(*other))
        for one, other in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True)
    ]
    score_errors, box_errors, num_at_cut = zip(*rows, strict=True)
    return Difference(max(score_errors), max(box_errors), sum(num_at_cut))


def photographs() -> list[Image]:
    """Photographs that scikit-image brings, (H, W, 3) uint8 RGB."""
    folder = Path(skimage.__file__).parent / "data"
    return [decode_image((folder / name).read_bytes()) for name in _PHOTOS]


def _row_difference(expected: RawOutput, found: RawOutput) -> Difference:
    score_error = float(np.abs(expected.scores - found.scores).max())
    slack = 2 * score_error + 1e-7  # what is closer than that may have changed places
    is_free = np.ones(len(found.scores), np.bool_)
    box_error, num_at_cut = 0.0, 0
    for score, label, box in zip(*expected, strict=True):
        is_candidate = is_free & (found.labels == label) & (np.abs(found.scores - score) <= slack)
        candidates = np.flatnonzero(is_candidate)
        distances = np.abs(found.boxes[candidates] - box).max(axis=1)
        nearest = int(distances.argmin()) if len(candidates) else -1
        distance = float(distances[nearest]) if len(candidates) else 1.0
        if distance > BOX_TOLERANCE and score <= expected.scores[-1] + slack:
            num_at_cut += 1
            continue
        box_error = max(box_error, distance)
        if len(candidates):
            is_free[candidates[nearest]] = False
    return Difference(score_error, box_error, num_at_cut)


def _check(model: DetectionModel, engine: Engine, batch: Batch) -> dict[str, Any]:
    with _watched_proposals(model) as gaps:
        expected = RawOutput(*torch_predictor(model)(batch.images, batch.padding_mask))
    if not (np.isfinite(expected.scores).all() and np.isfinite(expected.boxes).all()):
        raise ValueError("the checkpoint's detections are not finite; train or convert it anew")
    apart = difference(expected, engine.run(batch.images, batch.padding_mask))
    return {
        "name": batch.name,
        "shape": list(batch.padding_mask.shape),
        "padding": float(batch.padding_mask.mean()),
        **apart._asdict(),
        "proposal_gap": min(gaps, default=None),
        "passed": apart.score_error <= SCORE_TOLERANCE and apart.box_error <= BOX_TOLERANCE,
    }


@contextmanager
def _watched_proposals(model: DetectionModel) -> Iterator[list[float]]:
    """A list that gets, for every run, how close the last proposal taken and the next one are.

    The smallest difference of their logits in the batch; nothing for a model without proposals.
    """
    gaps: list[float] = []
    queries = model.detector.queries
    if not isinstance(queries, ProposalQueries):
        yield gaps
        return
    count = queries.num_queries

    def note(_head: nn.Module, _tokens: tuple[Tensor, ...], logits: Tensor) -> None:
        ranked = logits[..., 0].sort(dim=1, descending=True).values  # (B, S)
        if ranked.shape[1] > count:
            gaps.append(float((ranked[:, count - 1] - ranked[:, count]).min()))

    handle = queries.class_head.register_forward_hook(note)
    try:
        yield gaps
    finally:
        handle.remove()


def _single(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    return _batch("one image", photos[:1], preprocess, preprocess)


def _padded(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    turned = [photos[0], np.rot90(photos[1]), photos[2]]
    return _batch("padded batch", turned, _scaled(preprocess, 0.75), preprocess)


def _odd(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    small = _scaled(preprocess, 0.5)
    resized = [prepare(np.ascontiguousarray(photo), small)[0] for photo in photos[:4]]
    odd = [image[: (image.shape[0] - 1) | 1, : (image.shape[1] - 1) | 1] for image in resized]
    return Batch("odd sizes", *pad_batch(odd, preprocess.min_side))


def _smallest(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    return Batch("one pixel", *pad_batch([photos[0][:1, :1]], preprocess.min_side))


def _scaled(preprocess: Preprocess, factor: float) -> Preprocess:
    sides = preprocess.short_side, preprocess.long_side
    short, long = (max(1, round(side * factor)) for side in sides)
    return preprocess.model_copy(update={"short_side": short, "long_side": long})


def _batch(name: str, photos: Sequence[Image], resize: Preprocess, preprocess: Preprocess) -> Batch:
    resized = [prepare(np.ascontiguousarray(photo), resize)[0] for photo in photos]
    return Batch(name, *pad_batch(resized, preprocess.min_side))
