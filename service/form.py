"""Reads a multipart form, and says precisely what is wrong with a bad one."""

import re
from collections.abc import AsyncGenerator
from typing import BinaryIO, cast

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import MalformedBody, TooManyImages
from service.settings import Settings

_MAX_COUNTED = 1000  # files are counted up to here, for the message about too many
_MAX_FIELDS = 100  # image_ids may be repeated, once per image; parsing thousands delays everyone
_FIELD_BYTES = 64 * 1024  # of one field that is not a file
_CHARSETS = {"utf-8", "ascii", "iso8859-1"}  # by the names of Python's codecs
_PIECE_BYTES = 4096  # smaller ones are joined
_EXTENDED_NAME = re.compile(rb";\s*filename\*", re.IGNORECASE)


async def read_form(request: Request, settings: Settings) -> FormData:
    """The fields and files of the body; close it when done.

    Raises:
        TooManyImages: more files than are counted.
        MalformedBody: broken or truncated.
    """
    parser = _FormParser(
        request.headers,
        request.stream(),
        max_files=max(settings.max_images, _MAX_COUNTED),
        max_fields=max(settings.max_images, _MAX_FIELDS),
        max_part_size=_FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many_images(f"more than {parser.max_files}", settings) from error
        reason = f" {error.__cause__}" if error.__cause__ else ""
        raise MalformedBody(
            f"the multipart form cannot be read: {error.message}{reason}"
        ) from error


def too_many_images(arrived: str, settings: Settings) -> TooManyImages:
    """The error for a request with too many images."""
    return TooManyImages(
        f"images in one request: expected at most {settings.max_images}, got {arrived}; send them "
        "in several requests, or raise the service's DETR_MAX_IMAGES"
    )


def too_many_tiles(num_images: int, num_parts: int, *, settings: Settings) -> TooManyImages:
    """The error for a request whose images have too many tiles."""
    return TooManyImages(
        f"images in one request, tiles included: expected at most {settings.max_images}, got "
        f"{num_parts}, of which {num_parts - num_images} are tiles; give a larger tile=, or raise "
        "the service's DETR_MAX_IMAGES"
    )


class FileInPieces:
    """A file in memory that grows without copying what it has: the body of a form is bounded.

    Growing a single buffer took more of the event loop's time than anything else about large
    bodies, as every new page of memory is a call into the kernel.
    """

    _rolled = False  # Starlette calls a file without it from a thread

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._num_bytes = 0

    def write(self, data: bytes) -> int:
        """Add to the end; small pieces are joined, since each takes memory of its own."""
        last = self._pieces[-1] if self._pieces else None
        if len(data) >= _PIECE_BYTES:
            self._pieces.append(data)
        elif isinstance(last, bytearray) and len(last) < _PIECE_BYTES:
            last += data
        else:
            self._pieces.append(bytearray(data))
        self._num_bytes += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """All of it, whatever the size."""
        return b"".join(self._pieces)

    def tell(self) -> int:
        """The number of bytes."""
        return self._num_bytes

    def seek(self, offset: int) -> None:
        """Nothing to do: only the whole file is read."""

    def close(self) -> None:
        """Free the memory."""
        self._pieces = []
        self._num_bytes = 0


class _FormParser(MultiPartParser):
    """Starlette's parser, which also notices truncated forms and misdeclared files."""

    def __init__(
        self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int
    ) -> None:
        super().__init__(headers, self._whole(stream), **limits)
        self._is_whole = False

    def on_part_begin(self) -> None:
        """Refuse unusual charsets, as some codecs raise errors that Starlette does not expect."""
        if self._charset not in _CHARSETS:
            raise MultiPartException(
                f"expected UTF-8, got {self.headers['content-type'][:100]!r}; leave out charset="
            )
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        """Decide whether the part is a file or a field, now that its headers are known."""
        super().on_headers_finished()
        part = self._current_part
        if part.file is None and _EXTENDED_NAME.search(part.content_disposition or b""):
            raise MultiPartException(
                f"field {part.field_name!r} has its file name as filename*=, which RFC 7578 does "
                'not allow in forms; write filename="photo.jpg", in UTF-8'
            )
        if part.file is not None:
            part.file.file.close()
            part.file = UploadFile(
                cast(BinaryIO, FileInPieces()),
                size=0,
                filename=part.file.filename,
                headers=part.file.headers,
            )

    def on_end(self) -> None:
        """Note the closing boundary."""
        self._is_whole = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._is_whole:
            raise MultiPartException(
                "it is truncated: its closing boundary is missing; send the whole form again"
            )
