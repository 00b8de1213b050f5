"""Reads a multipart form, and says precisely what is wrong with a bad one."""

import re
from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import MalformedBody, TooManyImages
from service.settings import Settings

_MAX_COUNTED = 1000  # files are counted up to here, for the message about too many
_MAX_FIELDS = 1000  # image_ids may be repeated, once per image
_FIELD_BYTES = 64 * 1024  # of one field that is not a file
_CHARSETS = {"utf-8", "ascii", "iso8859-1"}  # by the names of Python's codecs
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
        max_fields=_MAX_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    parser.spool_max_size = settings.max_body_bytes  # files stay in memory: the body is bounded
    try:
        return await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many_images(f"more than {parser.max_files}", settings) from error
        raise MalformedBody(f"the multipart form cannot be read: {error.message}") from error


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
