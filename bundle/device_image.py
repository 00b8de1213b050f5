"""Images that were decoded into the memory of a GPU, and are cut and resized there."""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt


class DeviceImage(Protocol):
    """An image (H, W, 3) uint8 RGB; it leaves the device once it is resized."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""

    def __getitem__(self, part: tuple[slice, slice]) -> Self:
        """A part of it: rows and columns."""

    def resized(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """(h, w, 3), as `prepare` of bundle.preprocess resizes an array, to the bit."""


Decoded = npt.NDArray[np.uint8] | DeviceImage


class Decode(Protocol):
    """`decode_image` of bundle.preprocess, or what stands in for it."""

    def __call__(
        self, data: bytes, *, max_pixels: int = ..., formats: Sequence[str] = ...
    ) -> Decoded:
        """See `decode_image`."""
