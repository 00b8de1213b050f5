"""Finds the images of a bulk run, divides them into chunks, and reads their bytes.

Places are paths or object storage addresses that Arrow knows (s3://, gs://, file://), with its
options after a question mark: folders of images, images, or Parquet files. A Parquet file has the
images' bytes in a column `image`, as binary or as Hugging Face's struct with a field `bytes`, and
may have columns `image_id` and `file_name`.

An address may contain keys, so what is written down, logged or printed is its `public_name`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from pydantic import BaseModel

from bundle.preprocess import SERVED_SUFFIXES

_TABLE_SUFFIX = ".parquet"
_COLUMNS = ["image", "image_id", "file_name"]


class Chunk(BaseModel):
    """Images whose results go into one file: image files, or one row group of a Parquet file."""

    index: int
    first_id: int  # of its first image, if no column has the ids
    places: list[str]  # of the image files, or of the one Parquet file
    row_group: int | None = None
    num_images: int

    def identity(self) -> str:
        """What tells it from other chunks, without the keys in its addresses."""
        names = [public_name(place) for place in self.places]
        return self.model_copy(update={"places": names}).model_dump_json()


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


def public_name(place: str) -> str:
    """A place as others may read it: an address without its password, user and options."""
    if not _is_address(place):
        return place
    address = urlsplit(place)
    user, _, host = address.netloc.rpartition("@")
    netloc = host if ":" in user else address.netloc  # without a password, it is no secret
    return address._replace(netloc=netloc, query="", fragment="").geturl()


def find_chunks(
    places: Sequence[str], *, chunk_size: int, results: str | None = None
) -> list[Chunk]:
    """All images at these places, in the same order in every run.

    Args:
        places: where they are.
        chunk_size: how many image files are in a chunk.
        results: the path of a folder at one of these places whose Parquet files are results.

    Raises:
        ValueError: there is nothing at a place, no image, or a Parquet file without images.
    """
    found = (file for place in places for file in _files(place, results))
    files = list(dict.fromkeys(found))  # each once, though places may overlap
    tables = [file for file in files if _file_name(file).endswith(_TABLE_SUFFIX)]
    images = [file for file in files if _file_name(file).lower().endswith(SERVED_SUFFIXES)]
    parts: list[tuple[list[str], int | None, int]] = []  # places, row group, images
    for start in range(0, len(images), chunk_size):
        some = images[start : start + chunk_size]
        parts.append((some, None, len(some)))
    for table in tables:
        metadata = _read_metadata(table)
        parts += [
            ([table], group, metadata.row_group(group).num_rows)
            for group in range(metadata.num_row_groups)
        ]
    if not parts:
        names = ", ".join(map(public_name, places))
        raise ValueError(f"expected images or Parquet files in {names}, got none")
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
            yield Source(chunk.first_id + number, public_name(place), partial(_read, place))
        return
    table = public_name(chunk.places[0])
    system, path = open_place(chunk.places[0])
    with system.open_input_file(path) as file:
        rows = pq.ParquetFile(file).read_row_group(chunk.row_group, columns=_COLUMNS).to_pylist()
    for number, row in enumerate(rows, chunk.first_id):
        image = row["image"]
        data = image.get("bytes") if isinstance(image, dict) else image
        image_id = row.get("image_id", number)
        if image_id is None:
            raise ValueError(f"{table}: expected an image_id in every row, got null")
        yield Source(image_id, row.get("file_name") or f"{table}#{number}", partial(_bytes, data))


def _read_metadata(table: str) -> pq.FileMetaData:
    """Of a Parquet file, once it is known to have images."""
    system, path = open_place(table)
    with system.open_input_file(path) as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{public_name(table)}: not a Parquet file ({error})") from error
        _check_columns(public_name(table), parquet.schema_arrow)
        return parquet.metadata


def _check_columns(table: str, schema: pa.Schema) -> None:
    if "image" not in schema.names:
        names = ", ".join(schema.names)
        raise ValueError(f"{table}: expected a column 'image', got the columns {names}")
    for column, expected, is_right in (
        ("image", "bytes, or of structs with 'bytes',", _holds_bytes),
        ("image_id", "whole numbers,", pa.types.is_integer),
        ("file_name", "text,", _is_text),
    ):
        kind = schema.field(column).type if column in schema.names else None
        if kind is not None and not is_right(kind):
            raise ValueError(f"{table}: expected a column {column!r} of {expected} got {kind}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _files(place: str, results: str | None) -> list[str]:
    system, path = open_place(place)
    info = system.get_file_info(path)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise ValueError(f"nothing found at {public_name(place)}")
    if info.type == pyarrow.fs.FileType.File:
        return [place]
    return files_in(place, system, path=path, but_in=results)


def files_in(
    place: str, system: pyarrow.fs.FileSystem, *, path: str, but_in: str | None = None
) -> list[str]:
    """The places of all files in the folder `place`, which is `path` in its file system.

    Those in the folder `but_in`, also a path in it, are left out.
    """
    found = system.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    try:
        paths = [one.path for one in found if one.is_file]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{public_name(place)}: expected names of files in UTF-8, got {error.object!r}; rename "
            "it, or convert all names with convmv"
        ) from error
    names = sorted(
        one.removeprefix(path.rstrip("/"))
        for one in paths
        if but_in is None or not one.startswith(f"{but_in}/")
    )
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
