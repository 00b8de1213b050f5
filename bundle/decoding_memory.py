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
    elif image.format in ("JPEG", "MPO") and is_decoded_at_its_end(data):
        bytes_per_pixel = 12 if image.mode == "CMYK" else 9  # all coefficients first
    else:
        bytes_per_pixel = 4 if image.mode in ("1", "L", "P") else 7
    num_pixels = image.width * image.height
    strip_bytes = 16 * min(num_pixels, STRIP_PIXELS)
    return num_pixels * bytes_per_pixel + strip_bytes
