"""Guards every engine: whatever goes wrong in it becomes an EngineFailure."""

import numpy as np
import numpy.typing as npt

from bundle.postprocess import RawOutput
from engines.base import Engine, EngineFailure


class GuardedEngine:
    """An engine that raises only EngineFailure, and whose output is always from 0 to 1."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.info = engine.name, engine.info
        self.max_batch_size = engine.max_batch_size
        self.gpu_memory_bytes = engine.gpu_memory_bytes
        self.close = engine.close
        self._engine = engine

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`. Scores and boxes are finite and from 0 to 1.

        The check catches NaN, and also the lowest number, to which some runtimes clamp NaN.
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
        return output


def guard(engine: Engine) -> Engine:
    """The engine, guarded; one that is already guarded is returned unchanged."""
    return engine if isinstance(engine, GuardedEngine) else GuardedEngine(engine)
