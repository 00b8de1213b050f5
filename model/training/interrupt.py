"""Treats Ctrl-C, SIGTERM and a closed terminal as a request to stop at the next safe moment."""

import logging
import os
import signal
from types import FrameType

from bundle.detect import Predict
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from model.data.workers import STOP_SIGNALS
from model.distributed import largest

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Work was abandoned because a stop was requested."""


class StopRequest:
    """A context in which the first SIGINT, SIGTERM or SIGHUP only sets `signal_number`.

    The second ends the process at once, as without this handler; but SIGHUP, which the kernel and
    the shell both send when a terminal closes, counts once. A signal that is ignored at the start,
    such as SIGHUP under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            if number == signal.SIGHUP:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = number
        log.warning(
            "%s: stopping after this step; a second one stops at once and loses the work since the "
            "last save",
            signal.Signals(number).name,
        )

    @property
    def is_requested(self) -> bool:
        return self.signal_number is not None

    def share(self) -> None:
        """Request a stop here if any process of the run was asked to stop."""
        self.signal_number = largest(self.signal_number or 0) or None

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process ended by that signal: 130, 143 or 129."""
        return 128 + (self.signal_number or 0)

    def check(self) -> None:
        """Raise `Interrupted` if a stop was requested."""
        if self.is_requested:
            raise Interrupted


def unless_stopped(predict: Predict, stop: StopRequest) -> Predict:
    """The same predictor; it raises Interrupted if a stop is requested."""

    def predict_or_stop(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        stop.check()
        return predict(images, padding_mask)

    return predict_or_stop
