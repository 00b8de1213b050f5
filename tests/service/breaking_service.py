"""The service with an engine that breaks: python -m tests.service.breaking_service FAULT."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from bundle.preprocess import decode_image
from service import serving
from service.__main__ import leave, serve
from service.settings import Settings
from tests.fakes import FakeEngine

BREAK = 77  # the top-left pixel of an image that breaks the engine for good


def hang() -> None:
    threading.Event().wait()


def fail() -> None:
    raise MemoryError


class BreakingEngine(FakeEngine):
    """Does what it should until an image breaks it; then a fault, ever again."""

    def __init__(self, fault: Callable[[], None]) -> None:
        super().__init__(max_batch_size=1)
        self._fault = fault
        self.is_broken = False

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        self.is_broken |= bool((images[:, 0, 0] == BREAK).any())
        if self.is_broken:
            self._fault()
        return super().run(images, padding_mask)


class StuckEngine(FakeEngine):
    """Can be used, but not closed."""

    def close(self) -> None:
        hang()


def hang_at_start() -> BreakingEngine:
    engine = BreakingEngine(hang)
    engine.is_broken = True
    return engine


def exit_at_start() -> FakeEngine:
    raise SystemExit("a runtime that cannot be loaded")


@cache
def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def hang_up_at_start() -> FakeEngine:
    hang_up()  # the first time
    return FakeEngine()


def decode_or_hang(data: bytes, **options: Any) -> npt.NDArray[np.uint8]:
    pixels = decode_image(data, **options)
    if pixels[0, 0, 0] == BREAK:
        hang()
    return pixels


ENGINES: dict[str, Callable[[], FakeEngine]] = {
    "none": FakeEngine,
    "decoder-hangs": FakeEngine,
    "hangs": lambda: BreakingEngine(hang),
    "fails": lambda: BreakingEngine(fail),
    "hangs-at-start": hang_at_start,
    "exits-at-start": exit_at_start,
    "hangs-up-at-start": hang_up_at_start,
    "hangs-at-end": StuckEngine,
}


def open_breaking(_: Bundle, __: Settings) -> FakeEngine:
    return ENGINES[sys.argv[1]]()


if __name__ == "__main__":
    if sys.argv[1] == "decoder-hangs":
        vars(serving)["open_decoder"] = lambda *_, **__: decode_or_hang
    leave(serve(Settings(), open_breaking))
