"""Finds the images of a bulk run, divides them into chunks, and reads their bytes.

Places are paths or object storage addresses that Arrow knows (s3://, gs://, file://), with its
options after a question mark: folders of images, images, or Parquet files. A Parquet file has the
images' bytes in a column `image`, as binary or as Hugging Face's struct with a field `bytes`, and
may have columns `image_id` and `file_name`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import pyarrow.fs
import pyarrow.parquet as pq
from pydantic import BaseModel

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TABLE_SUFFIX = ".parquet"


class Chunk(BaseModel):
    """Images whose results go into one file: image files, or one row group of a Parquet file."""

    index: int
    first_id: int  # of its first image, if no column has the ids
    places: list[str]  # of the image files, or of the one Parquet file
    row_group: int | None = None
    num_images: int


class Source(NamedTuple):
    """One image that has not been read yet."""

    image_id: int
    name: str
    read: Callable[[], bytes]


def open_place(place: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or an address, and the path in it.

    Files of one folder share a file system, as opening one asks object storage where the bucket is.
    """
    if not _is_address(place):
        return pyarrow.fs.LocalFileSystem(), str(Path(place).absolute())
    address = urlsplit(place)
    folder, _, name = address.path.rstrip("/").rpartition("/")
    system, path = _open_folder(address._replace(path=f"{folder}/").geturl())
    return system, f"{path.rstrip('/')}/{unquote(name)}" if name else path


@lru_cache(maxsize=64)
def _open_folder(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    system, path = pyarrow.fs.FileSystem.from_uri(address)
    return system, path


def find_chunks(places: Sequence[str], *, chunk_size: int) -> list[Chunk]:
    """All images at these places, in the same order in every run.

    Raises:
        ValueError: there is nothing at a place, or no image.
    """
    files = [file for place in places for file in _files(place)]
    tables = [file for file in files if _file_name(file).endswith(_TABLE_SUFFIX)]
    images = [file for file in files if _file_name(file).lower().endswith(_IMAGE_SUFFIXES)]
    parts: list[tuple[list[str], int | None, int]] = []  # places, row group, images
    for start in range(0, len(images), chunk_size):
        some = images[start : start + chunk_size]
        parts.append((some, None, len(some)))
    for table in tables:
        system, path = open_place(table)
        with system.open_input_file(path) as file:
            metadata = pq.ParquetFile(file).metadata
        parts += [
            ([table], group, metadata.row_group(group).num_rows)
            for group in range(metadata.num_row_groups)
        ]
    if not parts:
        raise ValueError(f"expected images or Parquet files in {', '.join(places)}, got none")
    chunks, first_id = [], 0
    for index, (some, row_group, count) in enumerate(parts):
        chunks.append(
            Chunk(
                index=index, first_id=first_id, places=some, row_group=row_group, num_images=count
            )
        )
        first_id += count
    return chunks


def sources(chunk: Chunk) -> Iterator[Source]:
    """The images of a chunk, in their order."""
    if chunk.row_group is None:
        for number, place in enumerate(chunk.places):
            yield Source(chunk.first_id + number, place, partial(_read, place))
        return
    system, path = open_place(chunk.places[0])
    with system.open_input_file(path) as file:
        rows = pq.ParquetFile(file).read_row_group(chunk.row_group).to_pylist()
    for number, row in enumerate(rows):
        image = row.get("image")
        data = image.get("bytes") if isinstance(image, dict) else image
        name = row.get("file_name") or f"{chunk.places[0]}#{chunk.first_id + number}"
        image_id = int(row.get("image_id", chunk.first_id + number))
        yield Source(image_id, name, partial(_bytes, data))


def _files(place: str) -> list[str]:
    system, path = open_place(place)
    info = system.get_file_info(path)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise ValueError(f"nothing found at {place}")
    if info.type == pyarrow.fs.FileType.File:
        return [place]
    return files_in(place, system, path=path)


def files_in(place: str, system: pyarrow.fs.FileSystem, *, path: str) -> list[str]:
    """The places of all files in the folder `place`, which is `path` in its file system."""
    found = system.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    names = sorted(one.path.removeprefix(path.rstrip("/")) for one in found if one.is_file)
    if not _is_address(place):
        return [f"{place.rstrip('/')}{name}" for name in names]
    address = urlsplit(place)
    root = address.path.rstrip("/")
    return [address._replace(path=f"{root}{quote(name)}").geturl() for name in names]


def _is_address(place: str) -> bool:
    return "://" in place


def _file_name(place: str) -> str:
    """The path of a place, without the options that an address may end with."""
    return urlsplit(place).path if _is_address(place) else place


def _read(place: str) -> bytes:
    system, path = open_place(place)
    with system.open_input_stream(path) as file:
        data: bytes = file.read()
        return data


def _bytes(data: Any) -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"expected bytes in the column 'image', got {type(data).__name__}")
    return data
