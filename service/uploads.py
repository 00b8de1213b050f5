"""Reads the body of POST /detect: the images, and the ids the client gave them."""

import re
from functools import partial
from typing import NamedTuple

from starlette.requests import Request

from bundle.preprocess import Uint8Array
from service.errors import InvalidRequest, NoImage, UnsupportedMediaType
from service.form import Form, FormFile, read_form, too_many_images
from service.json_body import parse_in_turn, read_json_images
from service.schemas import FILE_FIELDS, ID_FIELD
from service.settings import Settings

_ID = re.compile("-?[0-9]{1,1000}")  # Python refuses to convert more than 4300 digits
_MOST_BLANKS = 100  # before the brace of JSON


class Upload(NamedTuple):
    """One image of a request: a file, or pixels (H, W, 3) uint8 RGB that need no decoding."""

    file_name: str | None
    data: bytes | Uint8Array

    @property
    def num_bytes(self) -> int:
        """The memory it takes."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.nbytes


class Images(NamedTuple):
    """The images of one request, each with an id."""

    uploads: list[Upload]
    image_ids: list[int]


async def read_images(request: Request, settings: Settings) -> Images:
    """Read the body: a multipart form with files, JSON with base64 text, or else one raw image.

    Raises:
        ClientDisconnect: the client closed the connection before the body was whole.
        NoImage: no image, or one in a field of another name.
        InvalidRequest: an unknown field, a URL, or image_ids that do not fit the images.
        InvalidImage: JSON whose text is not base64.
        TooManyImages, PayloadTooLarge: over a limit.
        MalformedBody: broken or truncated multipart or JSON.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        return _from_form(await read_form(request, settings), settings)
    data = await read_body(request)
    if media_type == "application/json":
        return await parse_in_turn(partial(_from_json, data, settings))
    if not data:
        raise NoImage(
            "expected an image, got an empty body; send it as the body or as the multipart "
            f"field {FILE_FIELDS[0]!r}: curl -F {FILE_FIELDS[0]}=@photo.jpg"
        )
    if data[:_MOST_BLANKS].lstrip().startswith(b"{"):
        raise UnsupportedMediaType(
            f"expected an image, got JSON sent as {media_type[:100] or 'no type'!r}; send it with "
            "the header Content-Type: application/json"
        )
    if media_type == "application/x-www-form-urlencoded" and b"\0" not in data:  # no image file
        raise NoImage(
            "expected an image, got a form without files; curl -d sends a name as text, and drops "
            f"bytes of a file; write -F {FILE_FIELDS[0]}=@photo.jpg or --data-binary @photo.jpg"
        )
    return Images([Upload(None, data)], [0])


async def read_body(request: Request) -> bytes:
    """The whole body; unlike `request.body`, the request keeps no copy."""
    return b"".join([part async for part in request.stream()])


def _from_form(form: Form, settings: Settings) -> Images:
    _check_names([name for name, _ in form])
    uploads: list[Upload] = []
    id_fields: list[str] = []
    for name, value in form:
        if isinstance(value, FormFile):
            if name == ID_FIELD:
                raise InvalidRequest(
                    f"expected whole numbers as text in {ID_FIELD!r}, got a file; send the field "
                    f"without a file name, as with curl -F {ID_FIELD}=7"
                )
            uploads.append(Upload(value.name or None, value.data))
        elif name == ID_FIELD:
            id_fields.append(value)
        else:
            raise NoImage(
                f"field {name!r} has no file name, so it was read as text and not as a file; with "
                f"curl write -F {name}=@photo.jpg"
            )
    _check_files(uploads, settings)
    return Images(uploads, _read_ids(id_fields, len(uploads)))


def _from_json(body: bytes, settings: Settings) -> Images:
    files, image_ids = read_json_images(body)
    uploads = [Upload(None, data) for data in files]
    _check_files(uploads, settings)
    if image_ids is None:
        return Images(uploads, list(range(len(uploads))))
    _check_number(len(image_ids), len(uploads))
    return Images(uploads, image_ids)


def _check_names(names: list[str]) -> None:
    accepted = " or ".join(map(repr, FILE_FIELDS))
    unknown = sorted({name for name in names if name not in (*FILE_FIELDS, ID_FIELD)})
    if unknown:
        shown = ", ".join(repr(name[:100]) for name in unknown[:5])
        kind = InvalidRequest if set(names) & set(FILE_FIELDS) else NoImage
        raise kind(
            f"expected files in the field {accepted}, got {shown}; "
            f"the only other field is {ID_FIELD!r}, parameters belong in the query "
            "(/detect?threshold=0.5)"
        )
    if not set(names) & set(FILE_FIELDS):
        raise NoImage(f"expected a file in the field {accepted}, got a form without one")


def _check_files(uploads: list[Upload], settings: Settings) -> None:
    if len(uploads) > settings.max_images:
        raise too_many_images(str(len(uploads)), settings)
    for index, upload in enumerate(uploads):
        if len(upload.data) == 0:
            name = f" ({upload.file_name!r})" if upload.file_name else ""
            raise NoImage(f"image {index}{name}: expected a file with content, got 0 bytes")


def _read_ids(fields: list[str], num_images: int) -> list[int]:
    """The ids in the fields of a form; without any, the images are counted."""
    if not fields:
        return list(range(num_images))
    together = ",".join(fields)
    # Counted before they are divided: a body full of ids would then take twenty times its size.
    _check_number(together.count(",") + 1, num_images)
    texts = [text.strip() for text in together.split(",")]
    if not all(map(_ID.fullmatch, texts)):
        raise InvalidRequest(f"expected whole numbers in {ID_FIELD!r}, got {together[:100]!r}")
    return [int(text) for text in texts]


def _check_number(num_ids: int, num_images: int) -> None:
    if num_ids != num_images:
        raise InvalidRequest(
            f"expected one of {ID_FIELD!r} per image, got {num_ids} for {num_images}"
        )
