"""Finds TIFF files whose strips or tiles do not cover the image, which Pillow leaves black."""

from PIL import Image, TiffImagePlugin

_NUM_SAMPLES, _ORDER = 277, 284  # tags
_PLANES = 2  # the order of files that store one colour after another


def lacks_strips(image: Image.Image) -> bool:
    """Whether an opened file, not loaded yet, has too few strips or tiles."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    area = 0
    for tile in image.tile:
        assert tile.extents is not None
        left, top, right, bottom = tile.extents
        area += (right - left) * (bottom - top)
    is_in_planes = image.tag_v2.get(_ORDER) == _PLANES
    num_planes = image.tag_v2.get(_NUM_SAMPLES, 1) if is_in_planes and len(image.tile) > 1 else 1
    return bool(area < image.width * image.height * num_planes)
