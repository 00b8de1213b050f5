"""Suggests the known name that a mistyped one probably meant."""

import difflib
from collections.abc import Iterable

LONGEST = 100  # characters; a longer name is no slip, and comparing it takes time and memory


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the known names nearest to a mistyped one; empty if none is near."""
    if len(name) > LONGEST:
        return ""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3)
    return f"did you mean {' or '.join(repr(by_lower[one]) for one in close)}? " if close else ""
