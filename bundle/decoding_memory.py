"""How much memory an image takes while it is decoded, as far as its header tells."""

from PIL import Image

from bundle.jpeg_segments import is_decoded_at_its_end
from bundle.sixteen_bit import is_deep_colour
from bundle.to_rgb import STRIP_PIXELS


def decoding_bytes(image: Image.Image, data: bytes) -> int:
    """An estimate from the largest bytes per pixel seen when decoding 6-megapixel images."""
    if image.format == "WEBP":
        bytes_per_pixel = 20  # Pillow decodes it like an animation, with three canvases
    elif image.format == "PNG" and is_deep_colour(data):
        bytes_per_pixel = 36
    elif image.mode.startswith("I"):
        bytes_per_pixel = 9
    else:
        is_late = image.format in ("JPEG", "MPO") and is_decoded_at_its_end(data)
        return plain_bytes(image.width * image.height, image.mode, is_late=is_late)
    return _with_strip(image.width * image.height, bytes_per_pixel)


def plain_bytes(num_pixels: int, mode: str, *, is_late: bool) -> int:
    """`decoding_bytes` of the usual kinds, by Pillow's name for the mode.

    Args:
        is_late: see `bundle.jpeg_segments.is_decoded_at_its_end`.
    """
    if is_late:
        bytes_per_pixel = 12 if mode == "CMYK" else 9  # all coefficients first
    else:
        bytes_per_pixel = 4 if mode in ("1", "L", "P") else 7
    return _with_strip(num_pixels, bytes_per_pixel)


def _with_strip(num_pixels: int, bytes_per_pixel: int) -> int:
    return num_pixels * bytes_per_pixel + 16 * min(num_pixels, STRIP_PIXELS)
