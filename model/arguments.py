"""Values of command lines that several commands take."""

import argparse
import re


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def height_and_width(text: str) -> tuple[int, int]:
    """HxW in pixels, as in 480x640."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected HEIGHTxWIDTH in pixels, such as 480x640, got {text}"
        )
    return int(match[1]), int(match[2])
