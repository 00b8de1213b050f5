"""Guards every engine: whatever goes wrong in it becomes an EngineFailure."""

import numpy as np
import numpy.typing as npt

from bundle.manifest import Manifest
from bundle.postprocess import RawOutput
from engines.base import CapturesGraphs, Engine, EngineFailure


class GuardedEngine:
    """An engine that raises only EngineFailure, and whose output can always be used."""

    def __init__(self, engine: Engine, num_classes: int) -> None:
        self.name, self.info = engine.name, engine.info
        self.max_batch_size, self.largest_batches = engine.max_batch_size, engine.largest_batches
        self.gpu_memory_bytes = engine.gpu_memory_bytes
        self.runs_at_once = engine.runs_at_once
        self.close = engine.close
        self._engine = engine
        self._num_classes = num_classes

    @property
    def num_captures(self) -> int:
        """How many CUDA graphs the engine has captured."""
        return self._engine.num_captures if isinstance(self._engine, CapturesGraphs) else 0

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`. There is a row for every image, and every label is one of a class.

        Scores and boxes are finite and from 0 to 1, which excludes NaN and also the lowest number,
        to which some runtimes clamp NaN.
        """
        try:
            output = self._engine.run(images, padding_mask)
        except EngineFailure:
            raise
        except (Exception, SystemExit) as error:  # unexpected, so its type is named
            raise EngineFailure(
                f"the engine raised {type(error).__name__} on {images.shape}; see the log"
            ) from error
        numbers = output.scores, output.boxes
        if not all(((values >= 0) & (values <= 1)).all() for values in numbers):
            raise EngineFailure(
                f"expected finite scores and boxes, from 0 to 1, for {images.shape}"
            )
        if not ((output.labels >= 0) & (output.labels < self._num_classes)).all():
            raise EngineFailure(
                f"expected labels from 0 to {self._num_classes - 1}, got {output.labels.min()} to "
                f"{output.labels.max()}"
            )
        if not all(len(rows) == len(images) for rows in output):
            raise EngineFailure(
                f"expected a row for each image, {len(images)} in all, got {len(output.scores)} of "
                f"scores, {len(output.labels)} of labels and {len(output.boxes)} of boxes"
            )
        return output


def guard(engine: Engine, manifest: Manifest) -> GuardedEngine:
    """The engine of a bundle, guarded; one that is already guarded is returned unchanged."""
    if isinstance(engine, GuardedEngine):
        return engine
    return GuardedEngine(engine, len(manifest.classes))
