"""How a command starts: what Ctrl-C does to it, and what becomes of output that nobody reads."""

import io
import signal
import sys
from typing import Any, TextIO


def begin_command() -> None:
    """Call it before the imports that take long.

    From now on, Ctrl-C ends this process at once; a shell reports status 130. KeyboardInterrupt
    would not do: libraries that are being imported turn it into other errors. If Ctrl-C is ignored,
    as in the background, it stays ignored.

    When the reader of the output has ended, as `head` does, the work goes on, and is saved.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout, sys.stderr = while_it_is_read(sys.stdout), while_it_is_read(sys.stderr)


def raise_at_ctrl_c() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt, as it does where Python starts."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def while_it_is_read(stream: TextIO) -> TextIO:
    """The same stream, which takes what is written for nobody, too."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # closed, or a test's
    return io.TextIOWrapper(
        # Without a buffer between them, which refuses what a signal's handler writes meanwhile.
        _Pipe(stream.fileno(), "w", closefd=False),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Pipe(io.FileIO):
    def write(self, content: Any, /) -> int:
        left = memoryview(content)
        try:
            while left:
                left = left[super().write(left) or 0 :]
        except BrokenPipeError:
            pass
        return len(content)
