"""The chunks of a PNG file, and a copy without those that only say something about the image."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from bundle.file_pieces import PieceCounter

_SIGNATURE_BYTES = 8
_HEAD_BYTES, _CHECKSUM_BYTES = 8, 4  # around the content of a chunk; the head is length and kind
# Text and a colour profile. Pillow would expand each to up to 1 MiB, and nobody reads them here.
_REMARKS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}


class Chunk(NamedTuple):
    """Where a chunk and its content are; the last one may be cut off."""

    kind: bytes
    whole: slice
    content: slice


def chunks(data: bytes) -> Iterator[Chunk]:
    """Every chunk, in order.

    Raises:
        TooManyPieces: there are far more than an image needs.
    """
    counter = PieceCounter(len(data))
    start = _SIGNATURE_BYTES
    while start + _HEAD_BYTES <= len(data):
        counter.count()
        length, kind = struct.unpack_from(">I4s", data, start)
        content = slice(start + _HEAD_BYTES, start + _HEAD_BYTES + length)
        end = content.stop + _CHECKSUM_BYTES
        yield Chunk(kind, slice(start, end), content)
        start = end


def lacks_palette(data: bytes) -> bool:
    """Whether there is no palette before the pixels, which Pillow then takes for shades of grey.

    Raises:
        TooManyPieces: see `chunks`.
    """
    kinds = (chunk.kind for chunk in chunks(data))
    return next((kind for kind in kinds if kind in (b"PLTE", b"IDAT")), b"") != b"PLTE"


def without_remarks(data: bytes) -> bytes:
    """The file without text and colour profiles, which may be thousands of bombs.

    Raises:
        TooManyPieces: see `chunks`.
    """
    remarks = [chunk.whole for chunk in chunks(data) if chunk.kind in _REMARKS]
    if not remarks:
        return data
    starts = [0, *(whole.stop for whole in remarks)]
    ends = [*(whole.start for whole in remarks), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))
