"""Where native libraries lie once `python -m plugins.build` has made them."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "plugins"


def find(name: str) -> Path | None:
    """The library of this file name, or None where it was not built."""
    path = FOLDER / name
    return path if path.exists() else None
