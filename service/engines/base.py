"""What every engine is: a batch of padded images in, the graph's top detections out."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class RawOutput(NamedTuple):
    """The graph's answer for a batch.

    scores (B, K) float32, descending. labels (B, K) int64. boxes (B, K, 4) float32, xyxy,
    normalised by the un-padded image and clamped to 0..1.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded graph. Only one thread calls `run` at a time."""

    name: str
    max_batch_size: int

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """Detections of images (B, H, W, 3) RGB with padding_mask (B, H, W), True on padding.

        Raises:
            EngineFailure: the runtime failed, or an output is not finite.
        """

    def close(self) -> None:
        """Release the runtime; `run` must not be called again."""
