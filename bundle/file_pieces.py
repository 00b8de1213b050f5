"""Limits the pieces that an image file may be divided into, as each costs time and memory.

Pillow goes through the chunks of a PNG and the segments of a JPEG in Python, and keeps them. A file
of 30 MB that consisted of empty ones took half a minute and half a gigabyte, for an image of a few
pixels.
"""

import io

PIECES = 10_000
BYTES_A_PIECE = 256  # on average, if there are more; encoders write pieces of 8 KiB


class TooManyPieces(ValueError):
    """A file is divided into more pieces than any encoder makes of it."""


class PieceCounter:
    """Counts the pieces of a file of `num_bytes`."""

    def __init__(self, num_bytes: int) -> None:
        self._num_left = max(PIECES, num_bytes // BYTES_A_PIECE)

    def count(self) -> None:
        """Count one more. Raises TooManyPieces."""
        self._num_left -= 1
        if self._num_left < 0:
            raise TooManyPieces("it is divided into far more pieces than an image needs")


class FileInPieces(io.BytesIO):
    """A file in memory, whose reads are counted as pieces."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._counter = PieceCounter(len(data))

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes. Raises TooManyPieces."""
        self._counter.count()
        return super().read(size)
