"""What Ctrl-C does to a command: nothing is lost while it imports, so it ends without a trace."""

import signal


def end_at_ctrl_c() -> None:
    """From now on, Ctrl-C ends this process at once; a shell reports status 130.

    KeyboardInterrupt would not do: libraries that are being imported turn it into other errors.
    If Ctrl-C is ignored, as in the background, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_at_ctrl_c() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt, as it does where Python starts."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
