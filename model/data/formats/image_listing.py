"""The image files of a folder, by name and by stem."""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from bundle.folder import files_below
from bundle.preprocess import DATASET_SUFFIXES

IMAGE_SUFFIXES = frozenset(DATASET_SUFFIXES)


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def sorted_below(directory: Path, suffix: str) -> list[Path]:
    """The files below a folder with this suffix, in any case, sorted."""
    return sorted(path for path in files_below(directory) if path.suffix.lower() == suffix)


def images_below(directory: Path) -> list[Path]:
    """Every image in a folder and the folders in it, sorted."""
    return sorted(filter(is_image, files_below(directory)))


class ImageListing:
    """The images below a folder, found by what a tool says about them."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._images = {path.as_posix(): path for path in images}
        self._by_name: dict[str, list[Path]] = {}
        for path in self._images.values():
            for key in (path.name, path.stem):
                self._by_name.setdefault(composed(key), []).append(path)

    def find(self, *names: str, near: Path | None = None) -> Path | None:
        """The image that the first matching name stands for, or None.

        A name may start with folders, of any system, and may lack the suffix. If several images
        have the name, the best is one whose path ends like the given name, then one whose path
        ends like that of the file `near`, then the nearest to that file.
        """
        for name in names:
            parts = PurePosixPath(composed(name).replace("\\", "/")).parts
            last = parts[-1] if parts else ""
            found = self._by_name.get(last) or self._by_name.get(PurePosixPath(last).stem)
            if found:
                folders = parts[:-1]
                return max(found, key=lambda path: _closeness(path.parent, folders, near))
        return None


def find_own_image(
    listing: ImageListing, file: Path, *, image_name: str
) -> tuple[Path | None, Path | None]:
    """The image of an annotation file, and another one that it may be of instead.

    It should have the name of the file, and be named in it. If these are two images that both
    exist, as after the files were numbered anew, which of them is meant cannot be told.
    """
    named = listing.find(image_name, near=file)
    own = listing.find(file.stem, near=file)
    if named is None or own is None or named == own or named.stem == own.stem:
        return named or own, None
    return own, named


def composed(name: str) -> str:
    """The name with composed accents, which macOS decomposes."""
    return unicodedata.normalize("NFC", name)


def _closeness(folder: Path, folders: Sequence[str], near: Path | None) -> tuple[int, int, int]:
    """How many last folders are those named, and how many last and first ones those of `near`."""
    named = num_shared_ends(folder.parts, folders)
    if near is None:
        return named, 0, 0
    parts = near.parent.parts
    return (
        named,
        num_shared_ends(folder.parts, parts),
        _num_shared(folder.parts, parts),
    )


def num_shared_ends(first: Sequence[str], second: Sequence[str]) -> int:
    """How many of the last folders of two paths are the same."""
    return _num_shared(reversed(first), reversed(second))


def _num_shared(first: Iterable[str], second: Iterable[str]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
