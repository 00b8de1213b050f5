"""A directory that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.layout import MANIFEST_FILE


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that replaces it at the end, or is removed on failure.

    Whatever stops the work, even Ctrl-C, `out` is either the old directory or the complete new one.
    """
    out = Path(os.path.realpath(out))
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    staging.mkdir(parents=True)
    try:
        yield staging
        if out.exists():
            _swap(staging, out)
        else:
            staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _swap(staging: Path, out: Path) -> None:
    former = staging.with_suffix(".former")
    out.rename(former)
    try:
        staging.rename(out)
    except BaseException:
        former.rename(out)
        raise
    shutil.rmtree(former)


def require_replaceable(out: Path) -> None:
    """Raise ValueError if `out` holds anything but a bundle."""
    if not out.exists() or (out / MANIFEST_FILE).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise ValueError(
            f"{out} exists and is not a bundle; name a new directory with BUNDLE= (--out)"
        )
