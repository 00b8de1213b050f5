"""The image files of a folder, by name and by stem."""

import filecmp
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from bundle.folder import files_below
from bundle.image_formats import UNREAD_SUFFIXES
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


def unread_below(directory: Path) -> list[Path]:
    """The files below a folder that are images of other formats by their names, sorted."""
    return sorted(p for p in files_below(directory) if p.suffix.lower() in UNREAD_SUFFIXES)


class ImageListing:
    """The images below a folder, found by what a tool says about them."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in dict.fromkeys(images):
            self._by_name.setdefault(composed(path.name), []).append(path)
            self._by_stem.setdefault(composed(path.stem), []).append(path)

    def find(self, *names: str, near: Path | None = None) -> list[Path]:
        """The image that the first matching name stands for; none, or several that it may be.

        A name may start with folders, of any system, and may lack the suffix. If several images
        have the name, the best is one whose path ends like the given name, then one whose path
        ends like that of the file `near`, then the nearest to that file. Of equal files, the first
        is taken.
        """
        for name in names:
            parts = PurePosixPath(composed(name).replace("\\", "/")).parts
            last = parts[-1] if parts else ""
            stems = (last, PurePosixPath(last).stem)
            found = self._by_name.get(last) or next(filter(None, map(self._by_stem.get, stems)), [])
            if found:
                closeness = [_closeness(path.parent, parts[:-1], near) for path in found]
                best = max(closeness)
                return _different([p for p, n in zip(found, closeness, strict=True) if n == best])
        return []


def _different(paths: list[Path]) -> list[Path]:
    """The first of the files, and those that hold something else."""
    first, *others = paths
    return [first, *(path for path in others if not _is_equal(first, path))]


def _is_equal(first: Path, other: Path) -> bool:
    is_there = first.is_file() and other.is_file()
    return is_there and filecmp.cmp(first, other, shallow=False)


def find_own_image(listing: ImageListing, file: Path, *, image_name: str) -> list[Path]:
    """The image of an annotation file; none, or several of which it may be.

    It should have the name of the file, and be named in it. If these are two images that both
    exist, as after the files were numbered anew, which of them is meant cannot be told.
    """
    named = listing.find(image_name, near=file)
    own = listing.find(file.stem, near=file)
    if not named or not own:
        return named or own
    both = [path for path in named if path in own]
    if both or named[0].stem == own[0].stem:
        return both or named
    return [own[0], named[0]]


def tell_several(place: str, paths: Sequence[Path], *, said: str, remedy: str) -> str:
    """That an annotation file may be of any of several images.

    Args:
        said: what it calls its image. remedy: against the name of another image.
    """
    if paths[0].name == paths[1].name:
        several = ", ".join(map(str, paths))
        return f"{place} may be of any of several images, which differ: {several}; keep one"
    return (
        f"{place} is of {paths[0].name} by its name, but says {said} {paths[1].name}, which exists "
        f"too: {remedy}"
    )


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
