"""Reads a multipart form, and says precisely what is wrong with a bad one."""

import codecs
import re
from typing import NamedTuple

from multipart import (
    MultipartError,
    MultipartSegment,
    ParserError,
    PushMultipartParser,
    parse_options_header,
)
from starlette.requests import Request

from service.errors import MalformedBody, TooManyImages
from service.settings import Settings

_MAX_COUNTED = 1000  # files are counted up to here, for the message about too many
_MAX_FIELDS = 100  # image_ids may be repeated, once per image; parsing thousands delays everyone
_FIELD_BYTES = 64 * 1024  # of one field that is not a file
_CHARSETS = {"utf-8", "ascii", "iso8859-1"}  # by the names of Python's codecs
_PIECE_BYTES = 4096  # smaller ones are joined
_EXTENDED_NAME = re.compile(r";\s*filename\*", re.IGNORECASE)


class FormFile(NamedTuple):
    """A file of a form, under the name that the client gave it."""

    name: str
    data: bytes


Form = list[tuple[str, FormFile | str]]  # by field, in their order; files, and text


async def read_form(request: Request, settings: Settings) -> Form:
    """The fields and files of the body.

    Raises:
        TooManyImages: more files than are counted.
        MalformedBody: broken or truncated.
    """
    try:
        reader = _FormReader(request.headers["content-type"], settings)
        async for chunk in request.stream():
            reader.add(chunk)
        return reader.end()
    except MultipartError as error:
        raise MalformedBody(f"the multipart form cannot be read: {error}") from error


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

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Add to the end; small pieces are joined, since each takes memory of its own."""
        last = self._pieces[-1] if self._pieces else None
        if len(data) >= _PIECE_BYTES:
            self._pieces.append(data)
        elif isinstance(last, bytearray) and len(last) < _PIECE_BYTES:
            last += data
        else:
            self._pieces.append(bytearray(data))
        self.num_bytes += len(data)

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)


class _FormReader:
    """Collects the parts of a form as its bytes arrive.

    Raises:
        MultipartError, TooManyImages: from any method.
    """

    def __init__(self, content_type: str, settings: Settings) -> None:
        _, options = parse_options_header(content_type)
        self._charset = _charset(options.get("charset", "utf-8"), content_type)
        boundary = options.get("boundary", "").encode("latin-1")
        if not boundary:
            raise ParserError("its Content-Type has no boundary")
        # Whatever a client writes is text in Latin-1; `_decoded` makes what it means of that.
        self._parser = PushMultipartParser(boundary, header_charset="latin-1")
        self._settings = settings
        self._form: Form = []
        self._num_files = 0
        self._part: MultipartSegment | None = None
        self._content = FileInPieces()

    def add(self, chunk: bytes) -> None:
        """Parse what has arrived; what follows the last boundary is ignored."""
        if not chunk or self._parser.closed:
            return
        for event in self._parser.parse(chunk):
            if isinstance(event, MultipartSegment):
                self._begin(event)
            elif event is not None:
                self._continue(event)
            else:
                self._complete()

    def end(self) -> Form:
        """The form, which has to be whole."""
        try:
            self._parser.close()
        except ParserError:
            if self._part is None:
                raise ParserError(
                    "no part begins in it: it is truncated, or has another boundary than its "
                    "Content-Type says"
                ) from None
            raise ParserError(
                "it is truncated: its closing boundary is missing; send the whole form again"
            ) from None
        return self._form

    def _begin(self, part: MultipartSegment) -> None:
        self._part, self._content = part, FileInPieces()
        disposition = part.header("Content-Disposition")
        if part.filename is not None:
            self._num_files += 1
            most = max(self._settings.max_images, _MAX_COUNTED)
            if self._num_files > most:
                raise too_many_images(f"more than {most}", self._settings)
        elif _EXTENDED_NAME.search(disposition):
            raise ParserError(
                f"field {self._decoded(part.name)!r} has its file name as filename*=, which RFC "
                '7578 does not allow in forms; write filename="photo.jpg", in UTF-8'
            )
        elif len(self._form) - self._num_files >= max(self._settings.max_images, _MAX_FIELDS):
            raise ParserError("it has too many fields that are no files")

    def _continue(self, content: bytes) -> None:
        assert self._part is not None
        self._content.write(content)
        if self._part.filename is None and self._content.num_bytes > _FIELD_BYTES:
            raise ParserError(
                f"field {self._decoded(self._part.name)!r} has no file name and more than "
                f"{_FIELD_BYTES} bytes"
            )

    def _complete(self) -> None:
        assert self._part is not None
        name, data = self._decoded(self._part.name), self._content.read()
        if self._part.filename is not None:
            self._form.append((name, FormFile(self._decoded(self._part.filename), data)))
        else:
            self._form.append((name, self._decoded(data.decode("latin-1"))))

    def _decoded(self, text: str) -> str:
        """What bytes that were read as Latin-1 mean, or just that if they mean nothing else."""
        try:
            return text.encode("latin-1").decode(self._charset)
        except UnicodeDecodeError:
            return text


def _charset(name: str, content_type: str) -> str:
    """Refuse unusual ones: some codecs raise unexpected errors, or take very long."""
    try:
        charset = codecs.lookup(name).name
    except (LookupError, ValueError):
        charset = ""
    if charset not in _CHARSETS:
        raise ParserError(f"expected UTF-8, got {content_type[:100]!r}; leave out charset=")
    return charset
