"""Log lines: for people, or for programs as one JSON object per line."""

import json
import logging
import time
import warnings
from typing import Literal

from bundle.terminal import PrintableFormatter

LogFormat = Literal["text", "json"]


def set_up_logging(level: str, *, log_format: LogFormat) -> None:
    """Log to stderr from now on, in UTC."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else _text_lines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # ours say the same
    # It warns of every odd tag of an image, thousands of times, and Python keeps each warning.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # It warns of each broken form, so that a client could fill the log; the answer says it, too.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


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
        return json.dumps(line, default=str, ensure_ascii=False)


def _text_lines() -> logging.Formatter:
    formatter = PrintableFormatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter
