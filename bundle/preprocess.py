"""From the bytes of an image to what the graph takes: decode, resize, pad.

This is the only preprocessing at inference: the service, the command line and both evaluations
call it. On request, a GPU decodes and resizes instead (see `engines.decoders`). Normalisation
happens inside the graph, which takes uint8.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from sys import float_info

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from bundle.decoding_memory import decoding_bytes, plain_bytes
from bundle.device_image import Decoded
from bundle.file_pieces import FileInPieces
from bundle.image_formats import describe_content
from bundle.jpeg_end import complete_jpeg, lacks_a_colour
from bundle.jpeg_header import JpegHeader, ordinary_jpeg_header
from bundle.jpeg_pixels import decoded_by_libjpeg
from bundle.jpeg_segments import MOST_SCANS, has_too_many_scans, unreadable_kind
from bundle.orientation import DECODER_ERRORS, EXIF_ORIENTATION, exif_orientation, turned, upright
from bundle.png_chunks import chunks, lacks_palette, without_remarks
from bundle.png_rows import load_png
from bundle.sixteen_bit import is_mixed_up
from bundle.tiff_strips import lacks_strips
from bundle.to_rgb import to_rgb

MAX_PIXELS = 100_000_000  # 300 MB once decoded; a decompression bomb claims more in its header

# Pillow's own limit only warns up to twice its value, and a warning filter is state of the whole
# process. `_open` reads the size from the header and refuses, so Pillow's check is switched off.
Image.MAX_IMAGE_PIXELS = None
# One image is resized by one thread; several images are decoded side by side. OpenCV's own pool
# would fight with those threads, and hangs in forked data loader workers.
cv2.setNumThreads(0)

SERVED_FORMATS = ("JPEG", "PNG", "WEBP")
DATASET_FORMATS = (*SERVED_FORMATS, "BMP", "TIFF")  # also accepted for training and evaluation
# Only to find images in folders: what a file is, its content says.
SERVED_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp")
DATASET_SUFFIXES = (*SERVED_SUFFIXES, ".bmp", ".tif", ".tiff")
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # by the number of colours

Uint8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Colours = tuple[float, float, float]


class UndecodableImage(ValueError):
    """The bytes are damaged, or the image has too many pixels."""


class UnsupportedImage(ValueError):
    """The bytes are not a JPEG, PNG or WebP image."""


class Preprocess(BaseModel):
    """How images are resized and normalised; stored in every checkpoint and bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_side: int = Field(default=800, ge=1)
    long_side: int = Field(default=1333, ge=1)
    mean: Colours = (123.675, 116.28, 103.53)  # RGB, 0..255, ImageNet
    std: Colours = (58.395, 57.12, 57.375)
    min_side: int = Field(default=1, ge=1)  # smallest padded height and width, in pixels

    @field_validator("mean", "std")
    @classmethod
    def _check_colours(cls, value: Colours, info: ValidationInfo) -> Colours:
        low, high = (0, 255) if info.field_name == "mean" else (1, float_info.max)
        if not all(low <= number <= high for number in value):  # nor is NaN
            words = "from 0 to 255" if info.field_name == "mean" else "of at least 1"
            raise ValueError(
                f"expected three numbers {words}, got {', '.join(f'{n:g}' for n in value)}; "
                "samples go from 0 to 255, so a mean or deviation of fractions is that times 255"
            )
        return value


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image says.

    Attributes:
        size: (height, width) as displayed, which is the size `decode_image` returns.
        orientation: the EXIF orientation, 1 to 8; 1 is upright.
        decoding_bytes: most memory that `decode_image` needs, including its result.
    """

    size: tuple[int, int]
    orientation: int
    decoding_bytes: int = field(default=0, compare=False)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) before the orientation is applied."""
        return turned(self.size, self.orientation)


@dataclass(frozen=True)
class Geometry:
    """How one image was resized; sizes are (height, width)."""

    original: tuple[int, int]
    resized: tuple[int, int]


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = SERVED_FORMATS,
    least_side: int | None = None,
) -> Uint8Array:
    """Pixels (H, W, 3) uint8 RGB of an image in one of `formats`, as a viewer displays it.

    The format is recognised by content. EXIF orientation is applied, transparency becomes white,
    16-bit samples are scaled by the largest one present, and animations yield their first frame. A
    JPEG may lack its end marker, but nothing before it.

    Args:
        least_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, rounded up,
            of which no side is shorter. For training alone: resizing gives other pixels
            (docs/decisions/0002-opencv-resizes-and-pillow-decodes.md).

    Raises:
        UnsupportedImage: the content is not of an accepted format.
        UndecodableImage: empty, truncated or corrupt, or more than `max_pixels` by its header.
    """
    image_format = _sniff_format(data, formats)
    with _decoding(image_format, data):
        header = _ordinary_header(data, max_pixels) if image_format == "JPEG" else None
        if header is not None:
            pixels = decoded_by_libjpeg(data, header[:2], least_side=least_side)
            if pixels is not None:
                return upright(pixels, exif_orientation(header.exif))
        data = without_remarks(data) if image_format == "PNG" else data
        image = _open(data, image_format, max_pixels)
        pixels = None
        if image.format == "JPEG" and header is None:  # else libjpeg was asked already
            pixels = decoded_by_libjpeg(data, image.size[::-1], least_side=least_side)
        if image.mode not in ("RGB", "L"):
            pixels = None  # not kept beside Pillow's
        if pixels is None:
            image = _load(image, data, image_format, max_pixels)
            pixels = to_rgb(image, data)
        orientation = _orientation(image, data)
        image.close()  # its pixels
    return upright(pixels, orientation)


def read_header(
    data: bytes, formats: Sequence[str] = SERVED_FORMATS, *, max_pixels: int = MAX_PIXELS
) -> ImageHeader:
    """Size and orientation of an image, without decoding its pixels.

    Raises:
        UnsupportedImage, UndecodableImage: as `decode_image`, as far as the header shows it.
    """
    image_format = _sniff_format(data, formats)
    with _decoding(image_format, data):
        plain = without_remarks(data) if image_format == "PNG" else data
        image = _open(plain, image_format, max_pixels)
        orientation = _orientation(image, plain)
        num_bytes = decoding_bytes(image, plain) + (len(plain) if plain is not data else 0)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow reports its size as displayed
        orientation = image.tag_v2.get(EXIF_ORIENTATION, 1)
        return ImageHeader((image.height, image.width), orientation, num_bytes)
    stored = ImageHeader((image.height, image.width), orientation)
    # Swapping twice changes nothing.
    return ImageHeader(stored.stored_size, orientation, num_bytes)


def read_jpeg_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader | None:
    """As `read_header`, in a tenth of its time, for an ordinary JPEG.

    Otherwise, or if anything is wrong with it, None.
    """
    header = ordinary_jpeg_header(data)
    if header is None or header.height * header.width > max_pixels:
        return None
    num_bytes = plain_bytes(
        header.height * header.width,
        _JPEG_MODES[header.num_colours],
        is_late=header.is_decoded_at_its_end,
    )
    stored = ImageHeader((header.height, header.width), exif_orientation(header.exif))
    return ImageHeader(stored.stored_size, stored.orientation, num_bytes)


@contextmanager
def _decoding(image_format: str, data: bytes) -> Iterator[None]:
    """Turns the exceptions of decoders into UndecodableImage."""
    try:
        yield
    except UndecodableImage:
        raise
    except UnidentifiedImageError as error:
        raise _undecodable(image_format, data, "unreadable header") from error
    except DECODER_ERRORS as error:
        raise _undecodable(image_format, data, str(error)) from error


def _refuse_rare_kind(data: bytes) -> None:
    kind = unreadable_kind(data)
    if kind is not None:
        raise UndecodableImage(
            "expected a JPEG image of the usual kind, with 8 bits per sample, got one with "
            f"{kind}; save it again as JPEG or PNG"
        )


def _undecodable(image_format: str, data: bytes, reason: str) -> UndecodableImage:
    if image_format == "JPEG":
        _refuse_rare_kind(data)
    num_bytes = 8 + int.from_bytes(data[4:8], "little")
    if image_format == "WEBP" and num_bytes > len(data):
        reason = f"it is truncated to {len(data)} of {num_bytes} bytes"
    return UndecodableImage(f"the {image_format} image is damaged: {reason}")


def resized_size(height: int, width: int, *, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) after resizing with the aspect ratio kept; at least 1 pixel each.

    The short side becomes `short_side` unless the long one would exceed `long_side`; halves round
    up, as in mmdetection, which the published weights expect.
    """
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def prepare(image: Decoded, preprocess: Preprocess) -> tuple[Uint8Array, Geometry]:
    """Resize one image (H, W, 3) uint8 RGB to (h, w, 3) uint8 by bilinear interpolation.

    No antialiasing: the published weights were trained and evaluated without it.
    """
    original = (image.shape[0], image.shape[1])
    height, width = resized_size(
        *original, short_side=preprocess.short_side, long_side=preprocess.long_side
    )
    if isinstance(image, np.ndarray):
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = resized.astype(np.uint8, copy=False)
    else:
        pixels = image.resized((height, width))
    return pixels, Geometry(original, (height, width))


def photograph(preprocess: Preprocess) -> Uint8Array:
    """A black image of the size that a 4:3 photograph gets, (h, w, 3) uint8, to try an engine."""
    size = resized_size(3, 4, short_side=preprocess.short_side, long_side=preprocess.long_side)
    return np.zeros((*size, 3), np.uint8)


def pad_batch(
    images: list[Uint8Array], min_side: int = 1, *, reads_only: bool = False
) -> tuple[Uint8Array, BoolArray]:
    """Stack images (h, w, 3) uint8, each padded with zeros at the bottom and right.

    Args:
        reads_only: nobody writes the mask, so lone images may share it.

    Returns:
        images (B, H, W, 3) uint8 and padding_mask (B, H, W) bool, True on padding. H and W are
        the largest height and width of the batch, and at least `min_side`.
    """
    height = max(min_side, *(image.shape[0] for image in images))
    width = max(min_side, *(image.shape[1] for image in images))
    return pad_batch_to(images, height=height, width=width, reads_only=reads_only)


def pad_batch_to(
    images: Sequence[Uint8Array], *, height: int, width: int, reads_only: bool = False
) -> tuple[Uint8Array, BoolArray]:
    """Stack images (h, w, 3) uint8, each padded with zeros to a height and width.

    Returns:
        See `pad_batch`. A lone image that may be written and needs no padding is not copied.
    """
    first = images[0]
    if len(images) == 1 and first.shape[:2] == (height, width) and first.flags.writeable:
        mask = _no_padding(height, width)
        return first[np.newaxis], mask if reads_only else mask.copy()
    batch = np.empty((len(images), height, width, 3), np.uint8)
    padding_mask = np.zeros((len(images), height, width), np.bool_)
    for row, image in enumerate(images):
        h, w = image.shape[:2]
        batch[row, :h, :w] = image
        for whole, padding in ((batch, 0), (padding_mask, True)):
            whole[row, h:] = padding
            whole[row, :h, w:] = padding
    return batch, padding_mask


@lru_cache(maxsize=8)
def _no_padding(height: int, width: int) -> BoolArray:
    """The mask of a lone image, for reading alone: to make one takes 0.1 ms after a rest."""
    mask = np.zeros((1, height, width), np.bool_)
    mask.flags.writeable = False
    return mask


def _ordinary_header(data: bytes, max_pixels: int) -> JpegHeader | None:
    """The header of a JPEG in colour or grey with nothing unusual about it; else None."""
    header = ordinary_jpeg_header(data)
    if header is None or header.num_colours == 4 or header.height * header.width > max_pixels:
        return None
    return None if has_too_many_scans(data) or lacks_a_colour(data) else header


def _sniff_format(data: bytes, formats: Sequence[str]) -> str:
    if not data:
        raise UndecodableImage("expected an image, got 0 bytes")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    found = next((name for start, name in _SIGNATURES if data.startswith(start)), None)
    if found is None or found not in formats:
        accepted = f"{', '.join(formats[:-1])} or {formats[-1]}".replace("WEBP", "WebP")
        raise UnsupportedImage(f"expected a {accepted} image, got {describe_content(data)}")
    return found


def _open(data: bytes, image_format: str, max_pixels: int) -> Image.Image:
    image: Image.Image = Image.open(FileInPieces(data), formats=[image_format])
    width, height = image.size
    if width * height > max_pixels:
        raise UndecodableImage(
            f"expected at most {max_pixels:,} pixels, got {width} x {height} = "
            f"{width * height:,}; send a smaller image"
        )
    if image_format == "JPEG":
        _refuse_rare_kind(data)
    if image_format == "JPEG" and has_too_many_scans(data):
        raise UndecodableImage(
            f"expected a JPEG image of at most {MOST_SCANS} scans, got more, each of which goes "
            "through the whole image; save it again"
        )
    if image_format == "PNG" and image.mode == "P" and lacks_palette(data):
        raise UndecodableImage("the PNG image is damaged: it has no palette")
    if is_mixed_up(image):
        raise UndecodableImage(
            "expected a TIFF image with the samples of a pixel side by side, got one stored plane "
            "by plane; save it as PNG"
        )
    if (image_format == "JPEG" and lacks_a_colour(data)) or lacks_strips(image):
        raise _undecodable(image_format, data, "a part of its pixels is missing")
    if image.mode in ("I", "F"):  # Pillow would clip them to 0..255
        raise UndecodableImage(
            f"expected a {image_format} image of 8 or 16 bits per sample, got 32 bits, which do "
            "not say what is black and white; scale it to 8 bits"
        )
    return image


def _load(image: Image.Image, data: bytes, image_format: str, max_pixels: int) -> Image.Image:
    """The opened image with its pixels; for a JPEG that lacks its end, a completed copy."""
    if image_format == "PNG":
        load_png(image, data)
        return image
    try:
        image.load()
    except OSError:
        image.close()  # its pixels
        completed = complete_jpeg(data) if image_format == "JPEG" else None
        if completed is None:
            raise
        image = _open(completed, image_format, max_pixels)
        image.load()
    return image


def _orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation; 1 for TIFF, which Pillow rotates by itself."""
    return exif_orientation(
        _png_exif(data) if image.format == "PNG" else image.info.get("exif", b"")
    )


def _png_exif(data: bytes) -> bytes:
    """The first EXIF chunk, which may follow the pixels, where Pillow's header does not reach."""
    return next((data[chunk.content] for chunk in chunks(data) if chunk.kind == b"eXIf"), b"")
