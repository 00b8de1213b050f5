"""The ways an engine can silently spoil right answers, and an engine that does so."""

from collections.abc import Callable

import numpy as np

from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from engines.base import Engine

# Output (B, N) and the padding mask of its batch (B, H, W) -> another output.
Fault = Callable[[RawOutput, BoolArray], RawOutput]


def zeros(output: RawOutput, _: BoolArray) -> RawOutput:
    return RawOutput(*map(np.zeros_like, output))


def scaled_scores(output: RawOutput, _: BoolArray) -> RawOutput:
    return output._replace(scores=output.scores * np.float32(0.9))


def shifted_boxes(output: RawOutput, padding_mask: BoolArray) -> RawOutput:
    """Move boxes by two pixels to the right and down."""
    heights, widths = (~padding_mask).any(2).sum(1), (~padding_mask).any(1).sum(1)
    step = np.float32(2) / np.stack([widths, heights, widths, heights], axis=1)
    moved = output.boxes + step[:, None].astype(np.float32)
    return output._replace(boxes=moved.clip(0, 1))


def swapped_classes(output: RawOutput, _: BoolArray) -> RawOutput:
    """Swap the class of the best detection with the next class."""
    best = output.labels[:, :1]
    other = np.where(best > 0, best - 1, best + 1)
    swapped = np.where(output.labels == other, best, output.labels)
    return output._replace(labels=np.where(output.labels == best, other, swapped))


def random_boxes(output: RawOutput, _: BoolArray) -> RawOutput:
    corners = np.random.default_rng(0).random((*output.boxes.shape[:2], 2, 2), np.float32)
    boxes = np.sort(corners, axis=2).reshape(output.boxes.shape)
    return output._replace(boxes=boxes)


FAULTS: tuple[Fault, ...] = (zeros, scaled_scores, shifted_boxes, swapped_classes, random_boxes)


class FaultyEngine:
    """A right engine whose answers are spoilt afterwards."""

    def __init__(self, engine: Engine, fault: Fault) -> None:
        self.name, self.info = engine.name, engine.info
        self.max_batch_size, self.largest_batches = engine.max_batch_size, engine.largest_batches
        self.gpu_memory_bytes = engine.gpu_memory_bytes
        self.runs_at_once = engine.runs_at_once
        self.close = engine.close
        self._engine, self._fault = engine, fault

    def run(self, images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        return self._fault(self._engine.run(images, padding_mask), padding_mask)
