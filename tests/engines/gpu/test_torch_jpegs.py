"""What decodes on a GPU, on a CPU: nvImageCodec and torch run, and only the device differs."""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.device_image import Decode, Decoded
from bundle.preprocess import (
    DATASET_FORMATS,
    Preprocess,
    UndecodableImage,
    UnsupportedImage,
    decode_image,
    prepare,
)
from bundle.tiles import cut
from engines.base import EngineFailure
from engines.decoders import open_decoder
from tests.bundle.image_files import Encode, exif_of
from tests.engines.gpu.nvimagecodec import needs_nvimagecodec

pytestmark = needs_nvimagecodec

SMALL = Preprocess(short_side=64, long_side=128)


class Codec:
    """Stands between the decoder and nvImageCodec: notes batches, and can fail."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec
        self.batches: list[int] = []
        self.error: Exception | None = None
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def decode(self, files: Sequence[bytes], **options: Any) -> Any:
        self.batches.append(len(files))
        self.entered.release()
        self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return self.codec.decode(files, **options)


@pytest.fixture(scope="module")
def decode() -> Decode:
    return open_decoder("nvimagecodec-on-cpu")


@pytest.fixture
def watched(decode: Any) -> tuple[Any, Codec]:
    """A decoder, and what its nvImageCodec does."""
    from engines.gpu.torch_device import Cpu
    from engines.gpu.torch_jpegs import JpegDecoder

    codec = Codec(decode._codec)
    return JpegDecoder(codec, Cpu()), codec


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(120, 170, 3) uint8, soft enough for a JPEG."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(colours).resize((170, 120), Image.Resampling.BICUBIC))


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not is_so():
        threading.Event().wait(0.001)


def is_on_device(image: Decoded) -> bool:
    return not isinstance(image, np.ndarray)


def outcome(decode: Callable[..., Decoded], data: bytes) -> Any:
    """The pixels after resizing, and the geometry; or the error."""
    try:
        pixels, geometry = prepare(decode(data), SMALL)
    except (UndecodableImage, UnsupportedImage) as error:
        return type(error), str(error)
    return pixels.tolist(), geometry


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_decoded_on_the_device_to_the_same_pixels(
    decode: Decode, encode: Encode, picture: np.ndarray, subsampling: str, progressive: bool
) -> None:
    data = encode(picture, "JPEG", subsampling=subsampling, progressive=progressive)

    assert is_on_device(decode(data))
    assert decode(data).shape == picture.shape
    assert outcome(decode, data) == outcome(decode_image, data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_as_its_orientation_says(
    decode: Decode, encode: Encode, picture: np.ndarray, orientation: int
) -> None:
    data = encode(picture, "JPEG", exif=exif_of(orientation))

    assert is_on_device(decode(data))
    assert outcome(decode, data) == outcome(decode_image, data)


def test_grey_is_decoded_on_the_device_and_becomes_rgb(
    decode: Decode, encode: Encode, picture: np.ndarray
) -> None:
    data = encode(picture[:, :, 0], "JPEG")

    assert is_on_device(decode(data))
    assert outcome(decode, data) == outcome(decode_image, data)


def test_tiles_are_cut_on_the_device(decode: Decode, encode: Encode, picture: np.ndarray) -> None:
    data = encode(picture, "JPEG")
    windows = cut(picture.shape[:2], 64)

    parts = [prepare(window.of(decode(data)), SMALL) for window in windows]

    assert len(windows) > 4
    for (pixels, geometry), window in zip(parts, windows, strict=True):
        expected, same = prepare(window.of(decode_image(data)), SMALL)
        np.testing.assert_array_equal(pixels, expected)
        assert geometry == same


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "BMP", {}),
    ],
)
def test_anything_else_is_decoded_on_the_cpu_as_ever(
    watched: tuple[Any, Codec],
    encode: Encode,
    picture: np.ndarray,
    mode: str,
    image_format: str,
    options: dict[str, Any],
) -> None:
    decode, codec = watched
    deep = Image.fromarray(picture[:, :, 0].astype(np.uint16) * 200)
    image = deep if mode == "I;16" else Image.fromarray(picture).convert(mode)
    data = encode(image, image_format, **options)

    decoded = decode(data, formats=DATASET_FORMATS)

    np.testing.assert_array_equal(decoded, decode_image(data, formats=DATASET_FORMATS))
    assert codec.batches == []


def damaged(data: bytes) -> list[bytes]:
    """Truncated, without its end, with pieces cut out, with other bytes, empty, and no JPEG."""
    places = np.random.randint(200, len(data) - 60, 60).tolist()
    return [
        *(data[:place] for place in places[:15]),
        data[:-2],
        *(data[:place] + data[place + 40 :] for place in places[15:40]),
        *(data[:place] + b"\xff\xd3\x00" + data[place + 3 :] for place in places[40:50]),
        *(data[:place] + b"\x12" + data[place + 1 :] for place in places[50:]),
        b"",
        data[:3],
        b"\xff\xd8\xff" + b"no picture",
        b"GIF89a",
    ]


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str
)
def test_a_damaged_file_has_the_outcome_that_it_has_on_the_cpu(
    decode: Decode, encode: Encode, picture: np.ndarray, options: dict[str, Any]
) -> None:
    files = damaged(encode(picture, "JPEG", **options))

    found = [outcome(decode, data) for data in files]

    assert found == [outcome(decode_image, data) for data in files]
    assert sum(isinstance(first, type) for first, _ in found) > 20  # errors


def test_too_many_pixels_are_refused_unseen(watched: tuple[Any, Codec], encode: Encode) -> None:
    decode, codec = watched
    data = encode(np.zeros((50, 50, 3), np.uint8), "JPEG")

    with pytest.raises(UndecodableImage, match="expected at most 2,000 pixels, got 50 x 50"):
        decode(data, max_pixels=2_000)
    assert codec.batches == []


def test_files_that_wait_are_decoded_together_and_each_gets_its_own_image(
    watched: tuple[Any, Codec], encode: Encode, picture: np.ndarray
) -> None:
    decode, codec = watched
    files = [encode(picture[: 20 + 7 * number], "JPEG") for number in range(6)]
    codec.gate.clear()
    with ThreadPoolExecutor(len(files)) as pool:
        first = pool.submit(decode, files[0])
        assert codec.entered.acquire(timeout=20)
        others = [pool.submit(decode, data) for data in files[1:]]
        wait_until(lambda: decode._waiting.qsize() == len(others))
        codec.gate.set()
        images = [future.result(20) for future in (first, *others)]

    assert codec.batches == [1, 5]
    assert [image.shape for image in images] == [decode_image(data).shape for data in files]


def test_whatever_is_raised_no_thread_waits_for_ever(
    watched: tuple[Any, Codec], encode: Encode, picture: np.ndarray
) -> None:
    decode, codec = watched
    data, codec.error = encode(picture, "JPEG"), ValueError("a parameter that is not known")
    codec.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(decode, data)
        assert codec.entered.acquire(timeout=20)
        others = [pool.submit(decode, data) for _ in range(2)]
        wait_until(lambda: decode._waiting.qsize() == 2)
        codec.gate.set()
        raised = [future.exception(20) for future in (first, *others)]

    assert raised[0] is codec.error  # and one of the others led the batch of both
    assert sorted(map(str, raised[1:])) == ["None", "a parameter that is not known"]


def test_a_failure_of_the_gpu_is_logged_and_the_cpu_decodes(
    watched: tuple[Any, Codec],
    encode: Encode,
    picture: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    decode, codec = watched
    data, codec.error = encode(picture, "JPEG"), RuntimeError("CUDA error: lost")

    np.testing.assert_array_equal(decode(data), decode_image(data))

    assert caplog.messages == ["decoding on the CPU what nvImageCodec failed on: CUDA error: lost"]


def test_a_failure_to_resize_is_one_of_the_engine(
    decode: Decode, encode: Encode, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    image = decode(encode(picture, "JPEG"))
    monkeypatch.setattr("engines.gpu.torch_jpegs.resize", out_of_memory)

    with pytest.raises(EngineFailure, match="an image was not resized: no memory"):
        prepare(image, SMALL)


class Wrong:
    """A codec whose images are not those of the files."""

    def __init__(self, image: np.ndarray | None) -> None:
        self.image = image

    def decode(self, files: Sequence[bytes], **_: Any) -> list[Any]:
        return [self.image for _ in files]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "decodes no JPEG on this GPU: it needs nvJPEG; install it with"),
        (np.zeros((9, 9, 3), np.uint8), "decodes no JPEG"),
        (np.zeros((250, 333, 3), np.uint8), "within 2 grey level.* of libjpeg's on average, got 1"),
    ],
)
def test_a_decoder_that_is_wrong_does_not_start(image: np.ndarray | None, message: str) -> None:
    from engines.gpu.torch_device import Cpu
    from engines.gpu.torch_jpegs import JpegDecoder, require_like_cpu

    with pytest.raises(ValueError, match=message):
        require_like_cpu(JpegDecoder(Wrong(image), Cpu()))


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    with pytest.raises(ValueError, match=r"JPEGs cannot be decoded on GPU 0: PyTorch .* finds 0"):
        open_decoder("gpu")


def test_an_nvimagecodec_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia import nvimgcodec

    def no_driver(**_: object) -> None:
        raise RuntimeError("Could not create decoder. Code: 8")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(nvimgcodec, "Decoder", no_driver)

    with pytest.raises(ValueError, match="nvImageCodec does not start: Could not create decoder"):
        open_decoder("gpu")


@pytest.mark.parametrize("package", ["torch", "nvidia"])
def test_without_a_package_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.delitem(sys.modules, "engines.gpu.torch_jpegs", raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ValueError, match=r"cannot be decoded on a GPU \(.*--group gpu-decoder"):
        open_decoder("gpu")
