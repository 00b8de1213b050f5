"""The files below a folder, as a person who looks into it counts them."""

import os
from collections.abc import Iterator
from pathlib import Path

_OF_SYSTEMS = ("__MACOSX", "@eaDir")  # what macOS and a NAS of Synology keep beside files


def files_below(directory: Path) -> Iterator[Path]:
    """Every file in a folder and the folders in it, in no order, also behind symbolic links.

    Hidden files and folders are left out. Pipes and links that lead nowhere count as files, so that
    whoever reads them says so.

    Raises:
        OSError: a folder cannot be read.
    """
    return _files_below(directory, above=())


def _files_below(directory: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    found = directory.stat()
    here = found.st_dev, found.st_ino
    if here in above:  # a link leads back
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
                continue
            path = directory / entry.name
            # Of a link that leads to itself, `entry.is_dir` raises.
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from _files_below(path, (*above, here))
            else:
                yield path
