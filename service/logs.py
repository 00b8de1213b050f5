"""Log lines, for people or as one JSON object each; nobody waits for whoever reads them."""

import io
import json
import logging
import os
import select
import sys
import time
import warnings
from typing import Literal, TextIO

from bundle.terminal import PrintableFormatter

LogFormat = Literal["text", "json"]

OURS = ("bundle", "engines", "service")
KEPT_BYTES = 1 << 20  # of lines that nobody has read yet
LAST_LINES_S = 1.0  # for a slow reader of the last lines

logger = logging.getLogger(__name__)


def set_up_logging(level: str, *, log_format: LogFormat) -> None:
    """Log to stderr from now on, in UTC."""
    handler = logging.StreamHandler(_without_waiting(sys.stderr))
    handler.setFormatter(JsonLines() if log_format == "json" else _text_lines())
    is_debug = level == "debug"  # of ours alone: Pillow has a line for every part of a file
    logging.basicConfig(level="INFO" if is_debug else level.upper(), handlers=[handler])
    for package in OURS if is_debug else ():
        logging.getLogger(package).setLevel("DEBUG")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # ours say the same
    # It warns of every odd tag of an image, thousands of times, and Python keeps each warning.
    warnings.filterwarnings("ignore", module=r"PIL\.")


class PatientStream:
    """Log lines on their way to a descriptor. Nobody waits for whoever reads them there.

    Otherwise the next line would stop the event loop, and so the service, as soon as a pipe is
    full: when the program that collects logs hangs, or someone pauses it. Lines are kept until they
    can be written; those that are too many are lost, and counted in a line of their own.
    """

    def __init__(self, descriptor: int, *, encoding: str, kept_bytes: int = KEPT_BYTES) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._kept_bytes = kept_bytes
        self._kept = bytearray()
        self._num_lost = 0
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)

    def write(self, text: str) -> None:
        """Add lines; `flush` writes them."""
        data = text.encode(self._encoding, "backslashreplace")
        if len(self._kept) + len(data) > self._kept_bytes:
            self._num_lost += 1
        else:
            self._kept += data

    def flush(self) -> None:
        """Write as much as there is room for."""
        while self._kept and self._room.poll(0):
            try:  # for so many bytes there is room in a pipe that is not full
                num_written = os.write(self._descriptor, self._kept[: select.PIPE_BUF])
            except OSError:  # the disk is full, or nobody will ever read
                self._num_lost += self._kept.count(b"\n")
                self._kept.clear()
                return
            del self._kept[:num_written]
        if self._num_lost and not self._kept:
            num_lost, self._num_lost = self._num_lost, 0
            logger.warning("lines of the log that were lost, since nobody read them: %d", num_lost)

    def flush_within(self, seconds: float) -> None:
        """Write what is kept, and wait for room as long as this."""
        until = time.monotonic() + seconds
        self.flush()
        while self._kept and (left_s := until - time.monotonic()) > 0:
            self._room.poll(left_s * 1e3)
            self.flush()


def end_logging() -> None:
    """Write the last lines, if somebody reads them within `LAST_LINES_S`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, PatientStream):
            handler.stream.flush_within(LAST_LINES_S)
    logging.shutdown()


def _without_waiting(stream: TextIO) -> TextIO | PatientStream:
    """The stream, or one that writes to its descriptor if it has any."""
    try:
        return PatientStream(stream.fileno(), encoding=stream.encoding)
    except io.UnsupportedOperation:
        return stream


class JsonLines(logging.Formatter):
    """A record as an object: time, level, logger, message, and the fields of a request's line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message contains."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", None)
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            **({"message": record.getMessage()} if fields is None else fields),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # in ASCII, as the stream may be in any encoding


def _text_lines() -> logging.Formatter:
    formatter = PrintableFormatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter
