"""A directory that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.layout import MANIFEST_FILE


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that takes its place in the end, or is removed on a failure.

    Whatever stops the work, Ctrl-C included, `out` holds what it held or all that is new.
    """
    out = out.resolve()
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
    """Raise ValueError where `out` holds something else than a bundle."""
    if not out.exists() or (out / MANIFEST_FILE).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise ValueError(
            f"{out} is there and is no bundle; name a new directory by BUNDLE= (--out)"
        )
