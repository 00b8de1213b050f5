"""A worker of a bulk run that dies once, right after it has written the results of a chunk."""

import os
import signal
from pathlib import Path

from service.bulk_images import Chunk
from service.bulk_worker import Worker

DEADLY_CHUNK = 2


class DiesOnce(Worker):
    """Killed as if memory had run out, before it can say that the chunk is done."""

    def work_on(self, chunk: Chunk) -> None:
        super().work_on(chunk)
        mark = Path(self._out) / "has-died"
        if chunk.index == DEADLY_CHUNK and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
