"""Text that is safe to print: nothing in a stranger's file moves the cursor or hides a line."""

import logging
import re

# Control characters, and those that turn the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHOWN_NAME_CHARS = 60
_BREAKS = re.compile("[\t\n\u2028\u2029]")


def printable(text: object) -> str:
    """The text with control characters as `\\x1b`; tabs and line feeds stay."""
    return _UNPRINTABLE.sub(_escaped, str(text))


def one_line(text: str) -> str:
    """The text with control characters, tabs and line feeds as `\\n`."""
    return _BREAKS.sub(_escaped, printable(text))


def shortened(name: str) -> str:
    """A name for a line or a table: only its beginning if it is long."""
    return name if len(name) <= SHOWN_NAME_CHARS else f"{name[: SHOWN_NAME_CHARS - 3]}..."


def encodable(text: object) -> str:
    """The text with what no encoding has, such as odd bytes of a file's name, as `\\udce9`."""
    return str(text).encode(errors="backslashreplace").decode()


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


class PrintableFormatter(logging.Formatter):
    """Log lines without control characters, whatever is in their messages."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a trace if there is one."""
        return printable(super().format(record))


def log_messages(level: int = logging.WARNING) -> None:
    """Log bare messages to stderr from now on, as commands do."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
