"""An engine that only takes time, and how every server of bench_service answers with it."""

import time
from typing import Any

import numpy as np

from bundle.layout import STANDARD_FORM
from bundle.postprocess import ImageOutput, RawOutput, to_detections
from bundle.preprocess import Geometry, Preprocess
from engines.base import EngineInfo

MAX_BATCH_SIZE = 16
FIXED_MS, IMAGE_MS = 32.0, 8.0
PREPROCESS = Preprocess()


class MockEngine:
    """Sleeps as long as a GPU would work, and finds 100 objects."""

    name = "mock"
    info = EngineInfo("mock", "fp32", "fp32", STANDARD_FORM, threads=1, streams=1)
    largest_batches = ()
    gpu_memory_bytes = 0
    runs_at_once = 1

    def __init__(
        self,
        fixed_ms: float = FIXED_MS,
        image_ms: float = IMAGE_MS,
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
    ) -> None:
        """A batch of b images takes fixed_ms + b * image_ms."""
        self.fixed_ms = fixed_ms
        self.image_ms = image_ms
        self.max_batch_size = max_batch_size

    def run(self, images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        """The same answer for every image, after the time that the batch takes."""
        batch_size = len(images)
        time.sleep((self.fixed_ms + self.image_ms * batch_size) / 1e3)
        return RawOutput(
            scores=np.tile(np.linspace(0.9, 0.1, 100, dtype=np.float32), (batch_size, 1)),
            labels=np.zeros((batch_size, 100), np.int64),
            boxes=np.tile(np.array([0.1, 0.2, 0.6, 0.7], np.float32), (batch_size, 100, 1)),
        )

    def close(self) -> None:
        """Nothing to release."""


def as_json(output: ImageOutput, geometry: Geometry) -> list[dict[str, Any]]:
    """The detections of one image, in the form that the peers answer."""
    found = to_detections(output, geometry, threshold=0.3)
    return [
        {"bbox": box, "score": score}
        for box, score in zip(found.boxes_xywh_px.tolist(), found.scores.tolist(), strict=True)
    ]
