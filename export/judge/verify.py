"""Compares the serving engine with PyTorch on photographs; refuses a graph that differs.

An image's answer depends on the image alone. So an engine's answer to a batch is compared with
PyTorch's answers to its images one by one.

Image and batch sizes differ from those used in tracing: an exporter that takes an example's size
for a constant gives wrong numbers at other sizes, without any error.
"""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import skimage
import torch

from bundle.comparison import match
from bundle.manifest import Batches
from bundle.postprocess import ImageOutput, RawOutput
from bundle.preprocess import Preprocess, decode_image, pad_batch, prepare
from engines.base import Engine
from export.judge.refusal import Refused
from model.network.inference import DetectionModel, decode_detections, normalise, torch_predictor

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-5  # of the image's width or height
# Refinement can amplify rounding, so more is tolerated where PyTorch itself is inexact. In float32
# ONNX Runtime was up to 7 times as far from PyTorch as PyTorch from float64 (R50, random weights
# of large scale); a size that tracing took for a constant causes errors of 0.1 and more.
ROUNDING_FACTOR = 10
MAX_TOLERANCE = 1e-3

Image = npt.NDArray[np.uint8]
_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Input of one comparison: images (B, H, W, 3) uint8 and padding_mask (B, H, W) bool.

    min_side: the size that each image is padded to on its own.
    """

    name: str
    images: Image
    padding_mask: npt.NDArray[np.bool_]
    min_side: int


class Difference(NamedTuple):
    """How far apart two outputs for the same batch are.

    score_error: largest difference between scores of equal rank. box_error: largest difference of a
    coordinate between matched boxes, 1 for a box without a counterpart. num_at_cut: detections
    displaced from the end of one list by others of the same score; if they are more than half of a
    list, that does not explain them, and they count as an error of 1.
    """

    score_error: float
    box_error: float
    num_at_cut: int

    def is_within(self, tolerance: "Tolerance") -> bool:
        """Whether both errors are tolerated."""
        return self.score_error <= tolerance.score and self.box_error <= tolerance.box


class Tolerance(NamedTuple):
    """Largest allowed errors of scores and of box coordinates."""

    score: float = SCORE_TOLERANCE
    box: float = BOX_TOLERANCE

    def widened(self, rounding: Difference) -> "Tolerance":
        """The tolerance for a model with these rounding errors in PyTorch."""
        return Tolerance(
            min(max(self.score, ROUNDING_FACTOR * rounding.score_error), MAX_TOLERANCE),
            min(max(self.box, ROUNDING_FACTOR * rounding.box_error), MAX_TOLERANCE),
        )


def verify(
    model: DetectionModel, engine: Engine, *, preprocess: Preprocess, images: Sequence[Image]
) -> list[dict[str, Any]]:
    """Compare engine and model on batches made of the images; returns a report for each batch.

    A batch of unlike images may fail if each of them passes alone: see `batches_allowed`.

    Args:
        preprocess: of the bundle.
        images: (H, W, 3) uint8 RGB of any size; scikit-image's photographs are added.

    Raises:
        Refused: they differ by more than the tolerance.
        ValueError: the model's output is not finite.
    """
    photos = [*images, *photographs()]
    reports = []
    for make_batch in (_single, _padded, _odd, _smallest):
        batch = make_batch(photos, preprocess)
        report = _check(model, engine, batch)
        if not report["passed"] and len(batch.images) > 1:
            report["passed_alone"] = _passes_alone(model, engine, batch)
        reports.append(report)
        log.info("  %s", describe(report))
        if not report["passed"] and not report.get("passed_alone"):
            score, box = report["tolerance"].values()
            raise Refused(
                f"the exported graph does not do what the model does: {describe(report)}; "
                f"tolerated are {score:.1e} and {box:.1e}"
            )
    return reports


def batches_allowed(reports: Iterable[Mapping[str, Any]]) -> Batches:
    """Which images may share a batch, judging by these reports; for the manifest."""
    return "any" if all(report["passed"] for report in reports) else "equal_shapes"


def describe(report: dict[str, Any]) -> str:
    """One line on one comparison."""
    batch, height, width = report["shape"]
    return (
        f"{report['name']}, {batch} x {height} x {width}: scores differ by "
        f"{report['score_error']:.1e}, boxes by {report['box_error']:.1e}"
    )


def difference(expected: RawOutput, found: RawOutput) -> Difference:
    """How far apart two outputs for the same B images are.

    Detections are matched by label and score: those of (nearly) equal score may come in any order,
    and at the end of the list one may have displaced another.

    Raises:
        ValueError: they have different shapes.
    """
    if expected.scores.shape != found.scores.shape:
        raise ValueError(f"expected {expected.scores.shape} scores, got {found.scores.shape}")
    rows = [_row_difference(*pair) for pair in zip(expected.rows(), found.rows(), strict=True)]
    score_errors, box_errors, num_at_cut = zip(*rows, strict=True)
    return Difference(max(score_errors), max(box_errors), sum(num_at_cut))


def photograph_files() -> list[Path]:
    """The files of four photographs in scikit-image: a cat, a cup, a rocket and an astronaut."""
    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in _PHOTOS]


def photographs() -> list[Image]:
    """These photographs, (H, W, 3) uint8 RGB."""
    return [decode_image(file.read_bytes()) for file in photograph_files()]


def _row_difference(expected: ImageOutput, found: ImageOutput) -> Difference:
    score_error = float(np.abs(expected.scores - found.scores).max())
    paired = match(expected, found, slack=2 * score_error + 1e-7)
    distances = np.abs(expected.boxes - found.boxes[paired.counterparts]).max(axis=1)
    distances[paired.counterparts < 0] = 1.0
    box_error = float(distances[~paired.is_at_cut].max())
    return Difference(score_error, box_error, int(paired.is_at_cut.sum()))


def _check(model: DetectionModel, engine: Engine, batch: Batch) -> dict[str, Any]:
    singles = _one_by_one(batch)
    predict = torch_predictor(model)
    expected = _joined([predict(one.images, one.padding_mask) for one in singles])
    if not (np.isfinite(expected.scores).all() and np.isfinite(expected.boxes).all()):
        raise ValueError("the checkpoint's detections are not finite; train or convert it again")
    apart = difference(expected, engine.run(batch.images, batch.padding_mask))
    tolerance = Tolerance()
    if not apart.is_within(tolerance):
        exact = _joined([_run_in_float64(model, one) for one in singles])
        tolerance = tolerance.widened(difference(exact, expected))
    return {
        "name": batch.name,
        "shape": list(batch.padding_mask.shape),
        "padding": float(batch.padding_mask.mean()),
        **apart._asdict(),
        "tolerance": tolerance._asdict(),
        "passed": apart.is_within(tolerance),
    }


def _passes_alone(model: DetectionModel, engine: Engine, batch: Batch) -> bool:
    return all(_check(model, engine, one)["passed"] for one in _one_by_one(batch))


def _one_by_one(batch: Batch) -> list[Batch]:
    """The images of a batch, each alone in a batch, without padding for the others."""
    singles = []
    for image, mask in zip(batch.images, batch.padding_mask, strict=True):
        height, width = (~mask[:, 0]).sum(), (~mask[0]).sum()
        alone = pad_batch([image[:height, :width]], batch.min_side)
        singles.append(Batch(batch.name, *alone, batch.min_side))
    return singles


def _joined(outputs: Sequence[RawOutput]) -> RawOutput:
    return RawOutput(*(np.concatenate(parts) for parts in zip(*outputs, strict=True)))


@torch.inference_mode()
def _run_in_float64(model: DetectionModel, batch: Batch) -> RawOutput:
    images, padding_mask = torch.from_numpy(batch.images), torch.from_numpy(batch.padding_mask)
    detector = copy.deepcopy(model.detector).double()
    normalised = normalise(images, padding_mask, preprocess=model.preprocess).double()
    outputs = detector(normalised, padding_mask)
    count = detector.config.num_detections
    decoded = decode_detections(outputs["pred_logits"], outputs["pred_boxes"], num_detections=count)
    return RawOutput(*(output.numpy() for output in decoded))


def _single(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    return _batch("one image", photos[:1], preprocess, preprocess)


def _padded(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    height, width = photos[0].shape[0], photos[1].shape[1]
    wide, tall = photos[0][: -(-height // 2)], photos[1][:, : -(-width // 2)]
    return _batch("padded batch", [wide, tall, photos[2]], _scaled(preprocess, 0.6), preprocess)


def _odd(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    small = _scaled(preprocess, 0.4)
    resized = [prepare(np.ascontiguousarray(photo), small)[0] for photo in photos[:4]]
    odd = [image[: (image.shape[0] - 1) | 1, : (image.shape[1] - 1) | 1] for image in resized]
    least = preprocess.min_side + 1 + preprocess.min_side % 2
    return Batch("odd sizes", *pad_batch(odd, least), preprocess.min_side)


def _smallest(photos: Sequence[Image], preprocess: Preprocess) -> Batch:
    pixel = pad_batch([photos[0][:1, :1]], preprocess.min_side)
    return Batch("one pixel", *pixel, preprocess.min_side)


def _scaled(preprocess: Preprocess, factor: float) -> Preprocess:
    sides = preprocess.short_side, preprocess.long_side
    short, long = (max(1, round(side * factor)) for side in sides)
    return preprocess.model_copy(update={"short_side": short, "long_side": long})


def _batch(name: str, photos: Sequence[Image], resize: Preprocess, preprocess: Preprocess) -> Batch:
    resized = [prepare(np.ascontiguousarray(photo), resize)[0] for photo in photos]
    return Batch(name, *pad_batch(resized, preprocess.min_side), preprocess.min_side)
