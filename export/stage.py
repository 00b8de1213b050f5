"""Reports what export is doing and for how long, and lets Ctrl-C end it."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)
_interrupted = threading.Event()


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here, at the next stage at the latest.

    A library that is running may catch it, or raise another exception in its place.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException as error:
        if _interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        _interrupted.clear()


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Log what is being done, and then how long it took."""
    if _interrupted.is_set():
        raise KeyboardInterrupt
    log.info("%s ...", description)
    start = time.perf_counter()
    yield
    log.info("  took %.0f s", time.perf_counter() - start)
