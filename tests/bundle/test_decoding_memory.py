"""What an image takes while it is decoded is known before, from its header."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bundle.preprocess import decode_image
from tests.bundle.image_files import jpeg_in_scans

SIDE = 1600
# Prints the most memory that decoding each file took, and what its header said.
MEASURE = """
import ctypes, json, re, sys
from pathlib import Path
from bundle.preprocess import decode_image, read_header

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

decode_image(Path(sys.argv[1]).read_bytes())
found = []
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    decode_image(data)
    found.append((memory("VmHWM") - before, read_header(data).decoding_bytes))
print(json.dumps(found))
"""


def flawed(jpeg: bytes) -> bytes:
    """A byte too many behind the first segment."""
    return jpeg[:20] + b"\0" + jpeg[20:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_memory_that_decoding_takes_is_told_from_the_header(
    encode: Callable[..., bytes], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE // 8, SIDE // 8, 4), np.uint8)
    rgba = Image.fromarray(np.asarray(cv2.resize(noise, (SIDE, SIDE)), np.uint8))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.asarray(rgb).astype(np.uint16) * 4  # 10 bits of 16
    files = [
        # A flaw that is only worth a warning; without one a JPEG takes less.
        flawed(encode(rgb, "JPEG")),
        flawed(encode(rgb, "JPEG", progressive=True, subsampling=0)),
        flawed(encode(rgb, "JPEG", exif=turned)),
        flawed(jpeg_in_scans(rgb)),
        encode(rgb.convert("CMYK"), "JPEG"),
        encode(rgb.convert("CMYK"), "JPEG", progressive=True),
        encode(grey, "PNG", compress_level=1),
        encode(rgba, "PNG", compress_level=1),
        encode(rgba.convert("LA"), "PNG", compress_level=1),
        encode(rgb.quantize(), "PNG", compress_level=1),
        encode(Image.fromarray(deep[..., 0]), "PNG", compress_level=1),
        cv2.imencode(".png", deep)[1].tobytes(),
        encode(rgba, "WEBP", method=0),
        encode(rgba, "WEBP", lossless=True, method=0, quality=0),
    ]
    paths = [tmp_path / str(index) for index in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)

    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, check=True
    )

    found = json.loads(result.stdout)
    assert [took <= 1.1 * told for took, told in found] == [True] * len(files), found
    assert [told <= 1.5 * took for took, told in found] == [True] * len(files), found


def test_a_large_image_is_converted_in_parts_that_fit_together(
    encode: Callable[..., bytes],
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1300, 1700, 4), np.uint8)
    alpha = noise[..., 3:].astype(np.float64) / 255
    over_white = noise[..., :3] * alpha + 255 * (1 - alpha)

    pixels = decode_image(encode(noise, "PNG", compress_level=1))

    assert pixels.shape == (1300, 1700, 3)
    assert np.abs(pixels - over_white).max() <= 1
