"""The segments of a JPEG file, and what they say: how many scans, which rare kind, how decoded."""

import re
from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np

from bundle.file_pieces import PieceCounter

SCAN = 0xDA
_ALL_COEFFICIENTS = b"\x00\x3f\x00"  # the end of the header of a scan
MOST_SCANS = 100  # encoders write at most 12
END = b"\xff\xd9"
_JPEG_LS = 0xF7
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # these are tables
# Data in arithmetic coding may end anywhere: a decoder fills it up with zeros, and what it makes of
# them are pixels. So nobody can tell a file that lacks a part from one that is whole.
_RARE_FRAMES = {
    **dict.fromkeys((0xC9, 0xCA), "arithmetic coding"),
    0xCB: "lossless arithmetic coding",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchy of frames"),
}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_BEFORE_SCANS = 1000  # segments that are read
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # except those inside the data of a scan
_STEP_BYTES = 1 << 18  # searched at a time: Python's lock is held meanwhile


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of every complete segment up to the end marker, without data of scans.

    Raises:
        TooManyPieces: there are far more than an image needs.
    """
    for found, content in _places(data):
        yield found[1][0], data[content]


def filled_scans(data: bytes, filling: bytes) -> bytes:
    """The file with more data at the end of each scan.

    A decoder that has all blocks of a scan passes over it; one that lacks some takes it for them.

    Raises:
        TooManyPieces: see `segments`.
    """
    ends = [0]
    marker = None
    for found, _ in _places(data):
        if marker == SCAN:
            ends.append(found.start())
        marker = found[1][0]
    if marker != END[1]:  # behind something that is no segment
        ends.append(max(ends[-1], data.rfind(END)))
    parts = [data[start:end] for start, end in pairwise(ends)]
    return filling.join((*parts, data[ends[-1] :]))


def with_plain_scans(data: bytes) -> bytes:
    """A sequential file whose scans say that they have all coefficients, as they have.

    Raises:
        TooManyPieces: see `segments`.
    """
    plain = bytearray(data)
    for found, content in _places(data):
        if found[1][0] == SCAN and content.stop - content.start > len(_ALL_COEFFICIENTS):
            plain[content.stop - len(_ALL_COEFFICIENTS) : content.stop] = _ALL_COEFFICIENTS
    return bytes(plain)


def _places(data: bytes) -> Iterator[tuple[re.Match[bytes], slice]]:
    """Where the marker and the content of every complete segment are.

    Raises:
        TooManyPieces: see `segments`.
    """
    counter = PieceCounter(len(data))
    position = 2  # after the start marker
    while found := _next_marker(data, position):
        counter.count()
        if found[1] == END[1:]:
            yield found, slice(found.end(), found.end())
            return
        start = found.end() + 2
        position = found.end() + int.from_bytes(data[found.end() : start])
        if not start <= position <= len(data):
            return
        yield found, slice(start, position)


def has_too_many_scans(data: bytes) -> bool:
    """Whether decoding would take far longer than the size of the image suggests.

    Each scan of a progressive file, of 36 bytes or more, refines the whole image.

    Raises:
        TooManyPieces: see `segments`.
    """
    if _count_scan_markers(data) <= MOST_SCANS:  # counts thumbnails, too
        return False
    scans = (marker for marker, _ in segments(data) if marker == SCAN)
    return next(islice(scans, MOST_SCANS, None), None) is not None


def unreadable_kind(data: bytes) -> str | None:
    """What libjpeg or Pillow cannot read, or not judge, about a JPEG that need not be damaged.

    Layout of the frame header: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, B.2.2.
    """
    for marker, content in islice(segments(data), _BEFORE_SCANS):
        if marker == _JPEG_LS:
            return "JPEG-LS"
        if marker in _FRAMES and len(content) > 5:
            if marker in _RARE_FRAMES:
                return _RARE_FRAMES[marker]
            if content[0] != 8:
                return f"{content[0]} bits per sample"
            return None if any(content[1:3]) else "its height after its pixels"
    return None


def is_decoded_at_its_end(data: bytes) -> bool:
    """Whether the coefficients of the whole image are kept until its last scan is read.

    They are if it is progressive, or if its first scan does not have all its colours. True if the
    file does not tell.
    """
    num_colours = 0
    for marker, content in islice(segments(data), _BEFORE_SCANS):
        if marker in _PROGRESSIVE:
            return True
        if marker in _FRAMES and len(content) > 5:
            num_colours = content[5]
        elif marker == SCAN and content:
            return content[0] != num_colours
    return True


def _count_scan_markers(data: bytes) -> int:
    """As bytes.count, which takes 0.34 ms for 400 kB, a 16th of decoding them; this takes 0.05."""
    count = 0
    for start in range(0, len(data) - 1, _STEP_BYTES):
        num_bytes = min(_STEP_BYTES + 1, len(data) - start)
        content = np.frombuffer(data, np.uint8, num_bytes, start)
        count += int(np.count_nonzero((content[:-1] == 0xFF) & (content[1:] == SCAN)))
    return count


def _next_marker(data: bytes, position: int) -> re.Match[bytes] | None:
    for start in range(position, len(data), _STEP_BYTES):
        # One byte more, as a marker may lie across two steps.
        found = _NEXT_MARKER.search(data, start, start + _STEP_BYTES + 1)
        if found:
            return found
    return None
