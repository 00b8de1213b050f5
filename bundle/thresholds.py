"""Default thresholds for scores: those with the best F1 on the validation images."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

DEFAULT_THRESHOLD: Final = 0.3  # for a model that was never evaluated
Float32Array = npt.NDArray[np.float32]


class OperatingPoint(BaseModel):
    """Precision and recall at an IoU of 0.5 of all detections above a threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(ge=0, le=1)
    precision: float = Field(ge=0, le=1)
    recall: float = Field(ge=0, le=1)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def __str__(self) -> str:
        """The point as text."""
        return (
            f"score {self.threshold:.2f}: precision {self.precision:.3f}, "
            f"recall {self.recall:.3f}, F1 {self.f1:.3f}"
        )


class Thresholds(BaseModel):
    """The thresholds with the best F1: one for all classes, and one for each.

    by_class: by category id; a class with few validation boxes is missing and uses `overall`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overall: OperatingPoint
    by_class: Mapping[int, OperatingPoint] = {}

    def lowest_scores(self, category_ids: Sequence[int]) -> Float32Array:
        """(K,) float32: the threshold of each category."""
        points = [self.by_class.get(category_id, self.overall) for category_id in category_ids]
        return np.array([point.threshold for point in points], np.float32)
