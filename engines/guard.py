"""The seam between an engine and what runs it: whatever goes wrong in one is an EngineFailure."""

import numpy as np
import numpy.typing as npt

from bundle.postprocess import RawOutput
from engines.base import Engine, EngineFailure


class GuardedEngine:
    """An engine whose failures are all EngineFailure, and whose output is from 0 to 1."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.info = engine.name, engine.info
        self.max_batch_size = engine.max_batch_size
        self.gpu_memory_bytes = engine.gpu_memory_bytes
        self.close = engine.close
        self._engine = engine

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`. Scores and boxes are finite and from 0 to 1.

        NaN is found, and what becomes of it: some runtimes clamp it to their lowest number.
        """
        try:
            output = self._engine.run(images, padding_mask)
        except EngineFailure:
            raise
        except (Exception, SystemExit) as error:  # that no engine knows of, so it is named as it is
            raise EngineFailure(
                f"the engine raised {type(error).__name__} on {images.shape}; the log says more"
            ) from error
        numbers = output.scores, output.boxes
        if not all(((values >= 0) & (values <= 1)).all() for values in numbers):
            raise EngineFailure(
                f"expected finite scores and boxes, from 0 to 1, for {images.shape}"
            )
        return output


def guard(engine: Engine) -> Engine:
    """The engine behind the seam; one that is there already is returned as it is."""
    return engine if isinstance(engine, GuardedEngine) else GuardedEngine(engine)
