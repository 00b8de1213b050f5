"""Images whose pixels stay on another device until they are resized."""

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from bundle.device_image import Decode
from bundle.preprocess import Preprocess, decode_image
from engines import base
from engines.decoders import open_decoder
from service.app import create_app
from service.client_memory import ClientMemory
from service.errors import EngineFailure, InvalidImage, ServiceError
from service.image_decoder import ImageDecoder, Parts
from service.metrics import Metrics
from service.settings import MIB, Settings
from service.uploads import Upload
from tests.engines.gpu.nvimagecodec import needs_nvimagecodec

pytestmark = pytest.mark.anyio

PREPROCESS = Preprocess(short_side=64, long_side=128)


class Held:
    """An image on a device that may fail."""

    def __init__(self, pixels: npt.NDArray[np.uint8], *, is_broken: bool = False) -> None:
        self._pixels = pixels
        self._is_broken = is_broken

    @property
    def shape(self) -> tuple[int, ...]:
        return self._pixels.shape

    def __getitem__(self, part: tuple[slice, slice]) -> "Held":
        return Held(self._pixels[part], is_broken=self._is_broken)

    def resized(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        if self._is_broken:
            raise base.EngineFailure("an image was not resized: no memory")
        return np.asarray(cv2.resize(np.ascontiguousarray(self._pixels), size[::-1]), np.uint8)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def open_images(metrics: Metrics) -> Iterator[Callable[[Decode], ImageDecoder]]:
    opened = []

    def open_them(decode: Decode) -> ImageDecoder:
        memory = ClientMemory(64 * MIB, decoding_bytes=32 * MIB)
        opened.append(ImageDecoder(Settings(), metrics=metrics, memory=memory, decode=decode))
        return opened[-1]

    yield open_them
    for decoder in opened:
        decoder.shutdown()


def held(data: bytes, **options: Any) -> Held:
    return Held(decode_image(data, **options))


async def parts_of(decoder: ImageDecoder, *files: bytes, tile_px: int | None = None) -> list[Parts]:
    uploads = [Upload(f"{number}.jpg", data) for number, data in enumerate(files)]
    images = decoder.prepared(uploads, PREPROCESS, client="someone", deadline=None, tile_px=tile_px)
    async with images as prepared:
        return prepared


def decoded(metrics: Metrics) -> dict[str, float]:
    names = ("cpu", "gpu")
    return {name: metrics.decoded.labels(name)._value.get() for name in names}


@pytest.mark.parametrize("tile_px", [None, 64])
async def test_an_image_on_a_device_is_prepared_like_any_other(
    open_images: Callable[[Decode], ImageDecoder],
    metrics: Metrics,
    jpeg_bytes: bytes,
    tile_px: int | None,
) -> None:
    ((*found,),) = await parts_of(open_images(held), jpeg_bytes, tile_px=tile_px)
    ((*expected,),) = await parts_of(open_images(decode_image), jpeg_bytes, tile_px=tile_px)

    assert len(found) == len(expected) == (1 if tile_px is None else 7)
    for (pixels, geometry), (right, same) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, right)
        assert geometry == same
    assert decoded(metrics) == {"cpu": 1, "gpu": 1}


async def test_a_damaged_file_is_refused_by_name(
    open_images: Callable[[Decode], ImageDecoder], jpeg_bytes: bytes
) -> None:
    with pytest.raises(InvalidImage, match=r"image 1 \('1.jpg'\): the JPEG image is damaged"):
        await parts_of(open_images(held), jpeg_bytes, jpeg_bytes[:-300])


async def test_a_device_that_cannot_resize_is_an_engine_failure(
    open_images: Callable[[Decode], ImageDecoder], jpeg_bytes: bytes
) -> None:
    def broken(data: bytes, **options: Any) -> Held:
        return Held(decode_image(data, **options), is_broken=True)

    with pytest.raises(EngineFailure, match="an image was not resized: no memory") as caught:
        await parts_of(open_images(broken), jpeg_bytes)
    assert isinstance(caught.value, ServiceError)
    assert caught.value.status == 500


@needs_nvimagecodec
async def test_nvimagecodec_gives_the_engine_the_same_pixels(
    open_images: Callable[[Decode], ImageDecoder],
    metrics: Metrics,
    jpeg_bytes: bytes,
    png_bytes: bytes,
) -> None:
    decoder = open_images(open_decoder("nvimagecodec-on-cpu"))

    found = await parts_of(decoder, jpeg_bytes, png_bytes, jpeg_bytes)

    assert decoded(metrics) == {"cpu": 1, "gpu": 2}
    expected = await parts_of(open_images(decode_image), jpeg_bytes, png_bytes, jpeg_bytes)
    for ((pixels, geometry),), ((right, same),) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, right)
        assert geometry == same


@needs_nvimagecodec
def test_a_service_that_cannot_decode_on_a_gpu_does_not_start(settings: Settings) -> None:
    beyond = settings.model_copy(update={"decoder": "gpu", "device": 99})

    with pytest.raises(ValueError, match="JPEGs cannot be decoded on GPU 99: PyTorch"):
        create_app(beyond)
