"""From images to detections, whether an engine, PyTorch or a fake runs the graph."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from bundle.device_image import Decoded
from bundle.postprocess import (
    Detections,
    Float32Array,
    ImageOutput,
    RawOutput,
    to_detections,
)
from bundle.preprocess import BoolArray, Geometry, Preprocess, Uint8Array, pad_batch, prepare
from bundle.tiles import cut, merge

# images (B, H, W, 3) uint8 RGB and padding_mask (B, H, W) bool, True on padding -> their output.
# `Engine.run` is one.
Predict = Callable[[Uint8Array, BoolArray], RawOutput]


class Batch(NamedTuple):
    """The input of the graph.

    images (B, H, W, 3) uint8 RGB, padded at the bottom and right. padding_mask (B, H, W) bool,
    True on padding. geometries: how each of the B images was resized.
    """

    images: Uint8Array
    padding_mask: BoolArray
    geometries: tuple[Geometry, ...]


class Found(NamedTuple):
    """The output for one image, and the image's geometry."""

    output: ImageOutput
    geometry: Geometry


def make_batch(images: Sequence[Decoded], preprocess: Preprocess) -> Batch:
    """Resize images (H, W, 3) uint8 RGB of any sizes and pad them to a common one."""
    resized, geometries = zip(*(prepare(image, preprocess) for image in images), strict=True)
    return Batch(*pad_batch(list(resized), preprocess.min_side), geometries)


def run_images(
    predict: Predict, images: Sequence[Decoded], *, preprocess: Preprocess
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
    images: Sequence[Decoded],
    *,
    preprocess: Preprocess,
    threshold: float | Float32Array = 0.0,
    top_k: int | None = None,
    labels_kept: Collection[int] | None = None,
    nms_iou: float | None = None,
    tile_px: int | None = None,
) -> list[Detections]:
    """Detect objects in images (H, W, 3) uint8 RGB, run as one batch.

    Args:
        predict: runs the batch; `engine.run` of an opened bundle.
        preprocess: from that bundle's manifest.
        threshold, top_k, labels_kept, nms_iou: see `to_detections`.
        tile_px: side of the tiles that larger images are cut into; then parts are run one by one.

    Raises:
        Whatever `predict` raises.
    """
    if tile_px is None:
        everything = run_images(predict, images, preprocess=preprocess)
    else:
        everything = [_run_parts(predict, image, preprocess, tile_px) for image in images]
    return [
        to_detections(
            *found, threshold=threshold, top_k=top_k, labels_kept=labels_kept, nms_iou=nms_iou
        )
        for found in everything
    ]


def _run_parts(predict: Predict, image: Decoded, preprocess: Preprocess, tile_px: int) -> Found:
    windows = cut((image.shape[0], image.shape[1]), tile_px)
    parts = [
        found
        for window in windows
        for found in run_images(predict, [window.of(image)], preprocess=preprocess)
    ]
    return Found(merge(windows, [part.output for part in parts]), parts[0].geometry)
