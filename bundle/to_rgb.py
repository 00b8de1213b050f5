"""RGB from what Pillow makes of a file: grey, palettes, 16 bits, transparency."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.sixteen_bit import scale_colour, scale_grey

STRIP_PIXELS = 1 << 20  # converted at a time, so that a large image is in memory only once


def to_rgb(image: Image.Image, data: bytes) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 of a loaded image with the file `data`; transparency becomes white."""
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow's convert would clip it at 255
        image = scale_grey(image)
    elif image.format in ("PNG", "TIFF"):
        image = scale_colour(image, data)
    elif image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        image = image.convert("RGB")  # programs that draw no transparency leave alpha 0
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    num_rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        strip = image.crop((0, top, image.width, min(top + num_rows, image.height)))
        pixels[top : top + num_rows] = np.asarray(_strip_to_rgb(strip))
    return pixels


def _strip_to_rgb(strip: Image.Image) -> Image.Image:
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        white = Image.new("RGB", strip.size, "white")
        white.paste(strip, mask=strip)
        return white
    return strip if strip.mode == "RGB" else strip.convert("RGB")
