"""From the graph's output to detections in pixels of the original image."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.duplicates import without_duplicates
from bundle.preprocess import Geometry

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class ImageOutput(NamedTuple):
    """The graph's output for one image: its row of a `RawOutput`.

    scores (N,) float32, descending. labels (N,) int64. boxes (N, 4) float32, xyxy, normalised by
    the un-padded image and clamped to 0..1.
    """

    scores: Float32Array
    labels: Int64Array
    boxes: Float32Array


class RawOutput(NamedTuple):
    """The graph's output for a batch; the fields have the names of the graph's outputs.

    scores (B, N) float32, descending. labels (B, N) int64. boxes (B, N, 4) float32, xyxy,
    normalised by the un-padded image and clamped to 0..1.
    """

    scores: Float32Array
    labels: Int64Array
    boxes: Float32Array

    def rows(self) -> list[ImageOutput]:
        """One output for each image of the batch."""
        return [ImageOutput(*row) for row in zip(*self, strict=True)]


@dataclass(frozen=True)
class Detections:
    """The detections in one image, best first.

    boxes_xywh_px (N, 4) float32: left, top, width, height in pixels of the original image as
    displayed. scores (N,) float32 in 0..1. labels (N,) int64: positions in the bundle's classes.
    """

    boxes_xywh_px: Float32Array
    scores: Float32Array
    labels: Int64Array

    def __len__(self) -> int:
        return len(self.scores)


def to_detections(
    output: ImageOutput,
    geometry: Geometry,
    *,
    threshold: float | Float32Array = 0.0,
    top_k: int | None = None,
    labels_kept: Collection[int] | None = None,
    nms_iou: float | None = None,
) -> Detections:
    """Filter the output for one image and scale its boxes.

    Args:
        geometry: of the image.
        threshold: lowest score kept, of all labels or (K,) by label; see `Manifest.lowest_scores`.
        top_k: most detections kept, counted after the other filters; None keeps all.
        labels_kept: labels of interest; None keeps all.
        nms_iou: see `without_duplicates`; None keeps all.
    """
    scores, labels, boxes = output
    is_kept = scores >= (threshold[labels] if isinstance(threshold, np.ndarray) else threshold)
    if labels_kept is not None:
        is_kept &= np.isin(labels, list(labels_kept))
    kept = np.flatnonzero(is_kept)
    if nms_iou is not None:
        kept = kept[without_duplicates(boxes[kept], labels[kept], iou=nms_iou)]
    kept = kept[:top_k]
    height, width = geometry.original
    boxes_px = boxes[kept].astype(np.float64) * (width, height, width, height)
    boxes_px[:, 2:] = np.maximum(boxes_px[:, 2:] - boxes_px[:, :2], 0.0)
    return Detections(boxes_px.astype(np.float32), scores[kept], labels[kept])
