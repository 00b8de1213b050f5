"""Fetches COCO val2017, on which published AP is measured, into one folder."""

import logging
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from model.checkpoints.download import Sleep, download
from model.progress import progress_bar

log = logging.getLogger(__name__)


class Archive(NamedTuple):
    """A zip file, and the file or folder in it that is kept."""

    url: str
    sha256: str
    kept: str


# Their publisher offers no HTTPS; the digests make up for that.
COCO_VAL = (
    Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        "annotations/instances_val2017.json",
    ),
    Archive(
        "http://images.cocodataset.org/zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        "val2017",
    ),
)


def fetch_archives(archives: Sequence[Archive], folder: Path, *, sleep: Sleep = time.sleep) -> None:
    """Download archives into a folder, and unpack what is kept of them there.

    What an earlier call unpacked is left alone; an interrupted download resumes. The zip files are
    removed.

    Raises:
        ValueError, OSError: see `download`.
    """
    for archive in archives:
        if (folder / archive.kept).exists():
            continue
        file = folder / archive.url.rsplit("/", 1)[1]
        log.info("downloading %s", archive.url)
        download(archive.url, file, sha256_digits=archive.sha256, sleep=sleep)
        _unpack(file, folder, kept=archive.kept)
        file.unlink()


def _unpack(file: Path, folder: Path, *, kept: str) -> None:
    """Unpack a part of a zip file so that it appears whole or not at all."""
    with zipfile.ZipFile(file) as zipped, TemporaryDirectory(dir=folder, prefix=".") as scratch:
        names = [name for name in zipped.namelist() if f"{name}/".startswith(f"{kept}/")]
        with progress_bar(total=len(names), desc=f"unpacking {kept}", unit=" files") as bar:
            for name in names:
                zipped.extract(name, scratch)
                bar.update()
        (folder / kept).parent.mkdir(parents=True, exist_ok=True)
        (Path(scratch) / kept).rename(folder / kept)
