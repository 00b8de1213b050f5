"""Counts what a model finds, by score and class, so that a change in the images shows."""

from collections.abc import Sequence

import numpy as np

from bundle.manifest import ClassInfo
from bundle.postprocess import ImageOutput
from service.metrics import COUNTED_SCORE, SCORE_FLOOR, Metrics


def count_found(
    metrics: Metrics, outputs: Sequence[ImageOutput], *, model: str, classes: Sequence[ClassInfo]
) -> None:
    """Count what was found in images, whatever the threshold of their request."""
    for output in outputs:
        metrics.scores.observe(output.scores[output.scores >= SCORE_FLOOR], model=model)
        counted = output.labels[output.scores >= COUNTED_SCORE]
        for label, count in zip(*np.unique(counted, return_counts=True), strict=True):
            metrics.detections.labels(model, classes[label].name).inc(int(count))
