"""Reports what export is doing, and for how long."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Log what is being done, and then how long it took."""
    log.info("%s ...", description)
    start = time.perf_counter()
    yield
    log.info("  took %.0f s", time.perf_counter() - start)
