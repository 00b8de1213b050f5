"""The meaning of single fields of an annotation file, in all the ways tools write them."""

import math

LARGEST_ID = 2**53  # JSON readers disagree about larger numbers
_FALSE = ("", "0", "false")
_TRUE = ("1", "true")


def read_id(value: object) -> int | str | None:
    """The whole number that the value is, in any form; other text as it is; otherwise None."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else text or None
    number = read_number(value)
    if number is None or number != int(number) or abs(number) > LARGEST_ID:
        return None
    return int(number)


def is_unicode(text: str) -> bool:
    """Whether text can be written to a file; half of a surrogate pair, as `\\ud800`, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_number(value: object) -> float | None:
    """A finite number, perhaps written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_flag(value: object) -> bool | None:
    """A truth value, given as 0, 1 or a bool, also as text, or missing (False); else None."""
    if isinstance(value, str):
        text = value.strip().lower()
        return False if text in _FALSE else True if text in _TRUE else None
    if value is None or value in (0, 1):
        return bool(value)
    return None


def read_box(value: object) -> tuple[float, float, float, float] | None:
    """Four finite numbers in a list; None for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [read_number(item) for item in value]
    x, y, w, h = numbers
    if x is None or y is None or w is None or h is None:
        return None
    return x, y, w, h


def read_size(height: object, width: object) -> tuple[int, int] | None:
    """(height, width), positive and whole; None if either is not."""
    numbers = [read_number(height), read_number(width)]
    sides = [int(n) for n in numbers if n is not None and n >= 1 and n == int(n)]
    return (sides[0], sides[1]) if len(sides) == 2 else None
