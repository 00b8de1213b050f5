"""Finds the image files of a data set and checks them, before training starts."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from model.data.annotations import ImageEntry
from model.data.faults import Fault
from model.data.formats.image_listing import is_image
from model.data.image_file import NUM_READERS, ImageFile, read_image_file
from model.data.place import OutsideError, is_inside, spellings

MIN_TRAINING_SIDE_PX = 32  # smaller images are not trained on, as published


def read_image_files(
    images: tuple[ImageEntry, ...],
    image_dir: Path,
    *,
    data_dir: Path,
    decode: bool,
    known: Mapping[Path, ImageFile | ValueError],
) -> Iterator[tuple[ImageEntry, ImageFile | Fault]]:
    """The file of every image, or what is wrong with it, in the order of `images`.

    Args:
        data_dir: what is outside of it is not read.
        decode: decode every image; otherwise only those that seem truncated.
        known: files that were read before; they are read again only to be decoded.
    """
    find = partial(find_image, image_dir=image_dir, data_dir=data_dir)
    read = partial(_find_file, find=find, decode=decode, known={} if decode else known)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = pool.map(read, images)
        bar = tqdm(found, total=len(images), desc="checking images", unit=" images", leave=False)
        yield from zip(images, bar, strict=True)


def _find_file(
    image: ImageEntry,
    *,
    find: Callable[[str], Path],
    decode: bool,
    known: Mapping[Path, ImageFile | ValueError],
) -> ImageFile | Fault:
    try:
        path = find(image.file_name)
    except OSError as error:
        return Fault("missing-file", image.id, None, str(error))
    except OutsideError as error:
        return Fault("outside-file", image.id, None, str(error))
    found = known.get(path) or read_image_file(path, decode=decode)
    if isinstance(found, ValueError):
        return Fault("unreadable-image", image.id, None, str(found))
    return found


def size_fault(image: ImageEntry, file: ImageFile) -> Fault | None:
    """What is wrong with an image's size, or with the size in the annotations."""
    header, shown_size = file.header, _shown(file.header.size)
    if image.size is not None and image.size != header.size:
        message = f"{file.path} is {shown_size} pixels, the annotations say {_shown(image.size)}"
        if image.size == header.stored_size:
            message = (
                f"{file.path} is {shown_size} pixels as displayed, by its EXIF orientation "
                f"{header.orientation}, and {_shown(image.size)} as stored, which is what the "
                "annotations say: draw the boxes on the displayed image, or remove the "
                "orientation (exiftool -Orientation= FILE)"
            )
        return Fault("other-size", image.id, None, f"{message}: its boxes would be misplaced")
    if min(header.size) < MIN_TRAINING_SIDE_PX:
        message = f"{file.path} is {shown_size} pixels, too small: not trained on"
        return Fault("tiny-image", image.id, None, message, fatal=False)
    return None


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def find_image(file_name: str, image_dir: Path, *, data_dir: Path) -> Path:
    """The file of an image in `image_dir`, even if a tool put folders before its name.

    Label Studio writes `images/1.png` for a file in the folder images, on Windows `images\\1.png`.

    Raises:
        FileNotFoundError: it is in none of the possible places; names them.
        OutsideError: it is outside of `data_dir`.
    """
    places: dict[Path, None] = {}
    for spelling in spellings(file_name):
        name = spelling.replace("\\", "/")
        names = [image_dir / spelling, image_dir / name, image_dir.parent / name]
        places |= dict.fromkeys([*names, image_dir / name.rsplit("/", 1)[-1]])
    there = [place for place in places if place.is_file()]
    found = next((place for place in there if is_inside(place, data_dir)), None)
    if found is None and there:
        raise OutsideError(there[0], data_dir)
    if found is None:
        elsewhere = "".join(f", nor {place}" for place in list(places)[1:])
        raise FileNotFoundError(f"there is no file {next(iter(places))}{elsewhere}")
    return found


def others_beside(paths: Iterable[Path]) -> list[Path]:
    """The images in the folders of some files that are none of them, sorted."""
    named = {Path(os.path.abspath(path)) for path in paths}
    folders = {path.parent for path in named}
    return sorted(
        path
        for folder in folders
        for path in folder.iterdir()
        if is_image(path) and path not in named and path.is_file()
    )
