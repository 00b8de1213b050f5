"""Signals that reach the service before its server runs; imports nothing that takes long."""

import os
import select
import signal
from types import FrameType
from typing import Final

HELD_BACK: Final = {signal.SIGHUP}  # its default would kill the process
MEANINGLESS: Final = (signal.SIGUSR1, signal.SIGUSR2)  # so would theirs


def heed() -> None:
    """From now on, SIGTERM and Ctrl-C end the process with status 0, and SIGHUP waits.

    An exception would not do: libraries that are being imported turn it into other errors. If
    Ctrl-C is ignored, as in the background, it stays ignored. SIGUSR1 and SIGUSR2, at which other
    servers reopen their logs, change nothing.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    for number in MEANINGLESS:
        signal.signal(number, signal.SIG_IGN)


def let_through() -> None:
    """Deliver what `heed` has held back; the server's handlers are set."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def _end(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    if select.select([], [2], [], 0)[1]:  # else nobody reads, and it would wait for that
        os.write(2, f"stopped by {name} before the service was started\n".encode())
    os._exit(0)
