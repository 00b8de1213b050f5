"""From images to detections, whatever runs the graph: an engine, PyTorch, or a stand-in."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from bundle.postprocess import (
    Detections,
    Float32Array,
    ImageOutput,
    RawOutput,
    to_detections,
)
from bundle.preprocess import BoolArray, Geometry, Preprocess, Uint8Array, pad_batch, prepare

# images (B, H, W, 3) uint8 RGB and padding_mask (B, H, W) bool, True on padding -> their output.
# `Engine.run` is one.
Predict = Callable[[Uint8Array, BoolArray], RawOutput]


class Batch(NamedTuple):
    """Images as the graph takes them.

    images (B, H, W, 3) uint8 RGB, padded at the bottom and right. padding_mask (B, H, W) bool,
    True on padding. geometries: what the resize did to each of the B images.
    """

    images: Uint8Array
    padding_mask: BoolArray
    geometries: tuple[Geometry, ...]


class Found(NamedTuple):
    """The output for one image, and the image's geometry."""

    output: ImageOutput
    geometry: Geometry


def make_batch(images: Sequence[Uint8Array], preprocess: Preprocess) -> Batch:
    """Resize images (H, W, 3) uint8 RGB of any sizes and pad them to a common one."""
    resized, geometries = zip(*(prepare(image, preprocess) for image in images), strict=True)
    return Batch(*pad_batch(list(resized), preprocess.min_side), geometries)


def run_images(
    predict: Predict, images: Sequence[Uint8Array], *, preprocess: Preprocess
) -> list[Found]:
    """Run images (H, W, 3) uint8 RGB as one batch.

    Raises:
        Whatever `predict` raises.
    """
    batch = make_batch(images, preprocess)
    outputs = predict(batch.images, batch.padding_mask).rows()
    return [Found(*pair) for pair in zip(outputs, batch.geometries, strict=True)]


def detect(
    predict: Predict,
    images: Sequence[Uint8Array],
    *,
    preprocess: Preprocess,
    threshold: float | Float32Array = 0.0,
    top_k: int | None = None,
    labels_kept: Collection[int] | None = None,
    nms_iou: float | None = None,
) -> list[Detections]:
    """Detections in images (H, W, 3) uint8 RGB, which are run as one batch.

    Args:
        predict: runs the batch; `engine.run` of an opened bundle.
        preprocess: of that bundle's manifest.
        threshold, top_k, labels_kept, nms_iou: see `to_detections`.

    Raises:
        Whatever `predict` raises.
    """
    return [
        to_detections(
            *found, threshold=threshold, top_k=top_k, labels_kept=labels_kept, nms_iou=nms_iou
        )
        for found in run_images(predict, images, preprocess=preprocess)
    ]
