"""Text from files is printed without its control characters."""

import logging
import os
from pathlib import Path

import pytest

from bundle.manifest import ClassInfo
from bundle.terminal import PrintableFormatter, encodable, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jbolt", r"\x1b[2Jbolt"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b31m \x7f", r"\x9b31m \x7f"),
        ("a\u202egnp.exe\u2066", r"a\u202egnp.exe\u2066"),
        (
            "Mütter M6, 螺栓, \u06cc\u200c\u062e",
            "Mütter M6, 螺栓, \u06cc\u200c\u062e",
        ),
    ],
)
def test_only_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(text) == shown
    assert printable(shown) == shown


def test_only_a_name_has_no_line_breaks() -> None:
    assert printable("one\n\ttwo") == "one\n\ttwo"
    assert one_line("one\n\ttwo\u2028three") == r"one\n\ttwo\u2028three"


def test_what_no_encoding_has_is_written_as_an_escape() -> None:
    assert encodable(Path(os.fsdecode(b"\xe9t\xe9.png"))) == r"\udce9t\udce9.png"
    assert encodable("螺栓\n") == "螺栓\n"


def test_the_name_of_a_class_can_be_printed() -> None:
    assert ClassInfo(id=1, name="\x1b]0;bolt\x07\n").name == r"\x1b]0;bolt\x07\n"


def test_log_lines_can_be_printed() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 1, "%s\n%s", ("\x1b[1m", "two"), None)

    assert PrintableFormatter("%(message)s").format(record) == "\\x1b[1m\ntwo"
