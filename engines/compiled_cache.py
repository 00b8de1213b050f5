"""Keeps compiled graphs in a bundle's cache, so that the next start does not compile them again.

Beside each, a file holds a SHA-256 of the graph and of what it was compiled for: the bundle's
hashes do not cover its cache, and a runtime may not notice that the weights have changed. Those for
different machines, which may share a bundle, lie side by side.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bundle.atomic import write_atomically
from bundle.layout import CACHE_FOLDER
from bundle.regular_file import require_file

logger = logging.getLogger(__name__)

MOST_KEPT = 4  # of one name; each may be as large as the weights
_KEY_LETTERS = 16


def read_compiled(bundle: Path, name: str, *, key: str) -> bytes | None:
    """The graph kept under this name; None if there is none for this key or it is damaged."""
    path = _path(bundle, name, key)
    try:
        compiled = require_file(path).read_bytes()
        digest = require_file(_digest_path(path)).read_bytes()
    except OSError:
        return None
    if digest != _digest(key, compiled):
        return None
    with suppress(OSError):  # where it may only be read
        os.utime(path)
    return compiled


def keep_compiled(bundle: Path, name: str, *, key: str, export: Callable[[], memoryview]) -> None:
    """Keep what `export` returns, if the bundle is writable.

    Of those under this name, only the MOST_KEPT that were used last remain.
    """
    path = _path(bundle, name, key)
    try:
        path.parent.mkdir(exist_ok=True)
        compiled = export()
        write_atomically(path, compiled)
        write_atomically(_digest_path(path), _digest(key, compiled))
        kept = sorted(path.parent.glob(f"{'?' * _KEY_LETTERS}-{name}"), key=_last_used)
        for old in kept[:-MOST_KEPT]:
            for file in (old, _digest_path(old)):
                file.unlink(missing_ok=True)
    except OSError as error:
        logger.info("the compiled graph cannot be kept for the next start: %s", error)


def can_keep(bundle: Path) -> bool:
    """Whether the bundle's cache can be written to."""
    folder = bundle / CACHE_FOLDER
    return os.access(folder if folder.is_dir() else bundle, os.W_OK)


def _path(bundle: Path, name: str, key: str) -> Path:
    short = hashlib.sha256(key.encode()).hexdigest()[:_KEY_LETTERS]
    return bundle / CACHE_FOLDER / f"{short}-{name}"


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(key: str, compiled: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(compiled)
    return digest.hexdigest().encode()


def _last_used(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process has removed it
        return 0
