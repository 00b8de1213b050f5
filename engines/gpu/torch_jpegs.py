"""JPEG files decoded and resized on an NVIDIA GPU, by nvImageCodec and torch.

libjpeg decides on the CPU which files are whole: nvImageCodec decodes damaged ones, too. What it
does not decode, and every other format, is decoded on the CPU as it is without a GPU.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nvidia import nvimgcodec
from torch import Tensor

from bundle.device_image import Decoded
from bundle.faultless_jpeg import faultless_header, trial_jpegs
from bundle.preprocess import MAX_PIXELS, SERVED_FORMATS, ImageHeader, decode_image
from engines.base import EngineFailure, reason
from engines.gpu.torch_device import Cpu, Device, Gpu
from engines.gpu.torch_resize import resize

logger = logging.getLogger(__name__)

# libjpeg-turbo's way to enlarge chroma: without it, 21% of all values in 4:2:0 differ.
OPTIONS = ":fancy_upsampling=1"
# Grey levels on average, of a decoder that may serve; 1.2 with chroma enlarged without smoothing,
# which takes 0.002 of AP from bundles/bccd; tens with colours in another order.
MOST_APART = 2.0
_TRANSPOSED = 5  # from this EXIF orientation on, rows and columns are swapped
_FLIPPED: Mapping[int, tuple[int, ...]] = {  # axes, after that
    2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)
}  # fmt: skip


class _Waiting(NamedTuple):
    """A file, and the image that a thread waits for: None if the CPU has to decode it."""

    data: bytes
    header: ImageHeader
    decoded: Future[Tensor | None]


class Picture:
    """A `DeviceImage` in a tensor (H, W, 3)."""

    def __init__(self, pixels: Tensor, where: Device) -> None:
        self._pixels = pixels
        self._where = where

    @property
    def shape(self) -> tuple[int, ...]:
        """See `DeviceImage.shape`."""
        return tuple(self._pixels.shape)

    def __getitem__(self, part: tuple[slice, slice]) -> "Picture":
        """See `DeviceImage`."""
        return Picture(self._pixels[part], self._where)

    def resized(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """See `DeviceImage.resized`.

        Raises:
            EngineFailure: the device failed.
        """
        try:
            with self._where.computing():
                pixels: npt.NDArray[np.uint8] = resize(self._pixels, size).cpu().numpy()
        except RuntimeError as error:
            raise EngineFailure(f"an image was not resized: {reason(error)}") from error
        return pixels


class JpegDecoder:
    """Stands in for `decode_image`, and may be called in many threads.

    One of the threads decodes for all that wait meanwhile, as one batch.

    Args:
        codec: a decoder of nvImageCodec.
        where: the device that has its images.
    """

    def __init__(self, codec: Any, where: Device) -> None:
        self._codec = codec
        self._where = where
        self._is_on_gpu = where.device.type == "cuda"
        self._parameters = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        self._waiting: SimpleQueue[_Waiting] = SimpleQueue()
        self._turn = Lock()

    def __call__(
        self, data: bytes, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = SERVED_FORMATS
    ) -> Decoded:
        """See `decode_image`.

        Raises:
            UnsupportedImage, UndecodableImage: as `decode_image`.
        """
        header = faultless_header(data, max_pixels=max_pixels)
        pixels = None if header is None else self._decode(data, header)
        if pixels is None:
            return decode_image(data, max_pixels=max_pixels, formats=formats)
        return Picture(pixels, self._where)

    def _decode(self, data: bytes, header: ImageHeader) -> Tensor | None:
        """(H, W, 3) uint8 RGB as displayed, or None if that is left to the CPU."""
        mine = _Waiting(data, header, Future())
        self._waiting.put(mine)
        with self._turn:
            if not mine.decoded.done():
                self._decode_waiting()
        return mine.decoded.result()

    def _decode_waiting(self) -> None:
        together = list(_taken(self._waiting))
        images: list[Tensor | None] = [None] * len(together)
        try:
            with self._where.computing():
                images = self._decode_batch(together)
        except RuntimeError as error:
            logger.warning("decoding on the CPU what nvImageCodec failed on: %s", reason(error))
        finally:  # whatever happens, as other threads wait for it
            for one, image in zip(together, images, strict=True):
                one.decoded.set_result(image)

    def _decode_batch(self, together: Sequence[_Waiting]) -> list[Tensor | None]:
        files = [one.data for one in together]
        stream = torch.cuda.current_stream().cuda_stream if self._is_on_gpu else 0
        images = self._codec.decode(files, params=self._parameters, cuda_stream=stream)
        return [
            None if image is None else self._upright(image, one.header)
            for image, one in zip(images, together, strict=True)
        ]

    def _upright(self, image: Any, header: ImageHeader) -> Tensor | None:
        """The image as displayed; None if it has another size than its header says."""
        if self._is_on_gpu:
            pixels = torch.from_dlpack(image)  # in the current stream
        else:
            pixels = torch.from_numpy(np.asarray(image))
        if tuple(pixels.shape) != (*header.stored_size, 3):
            return None
        if header.orientation >= _TRANSPOSED:
            pixels = pixels.transpose(0, 1)
        axes = _FLIPPED.get(header.orientation, ())
        return pixels.flip(axes) if axes else pixels


def _taken(queue: SimpleQueue[_Waiting]) -> Iterable[_Waiting]:
    """All that is in the queue."""
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return


def open_on_gpu(device: int = 0) -> JpegDecoder:
    """The decoder on one of this machine's GPUs, tried on a few images.

    Raises:
        ValueError: there is no such GPU, or it decodes nothing, or wrongly; says what to do.
    """
    if device >= torch.cuda.device_count():
        raise ValueError(
            f"JPEGs cannot be decoded on GPU {device}: PyTorch {torch.__version__} finds "
            f"{torch.cuda.device_count()}; check `nvidia-smi`, DETR_DEVICE and "
            "CUDA_VISIBLE_DEVICES, install a PyTorch with CUDA, or decode on the CPU"
        )
    kinds = nvimgcodec.BackendKind
    try:
        codec = _codec(device, [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU])
        decoder = JpegDecoder(codec, Gpu(device))
        require_like_cpu(decoder)
    except RuntimeError as error:
        raise ValueError(f"nvImageCodec does not start: {reason(error)}") from error
    logger.info("JPEGs are decoded and resized by GPU %d, if libjpeg finds them whole", device)
    return decoder


def open_on_cpu() -> JpegDecoder:
    """The same on the CPU: what nvImageCodec decodes there is what libjpeg-turbo decodes.

    Raises:
        ValueError: as `open_on_gpu`.
    """
    codec = _codec(nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, [nvimgcodec.BackendKind.CPU_ONLY])
    decoder = JpegDecoder(codec, Cpu())
    require_like_cpu(decoder)
    return decoder


def require_like_cpu(decoder: JpegDecoder) -> None:
    """Raise ValueError if trial images come out otherwise than from `decode_image`."""
    for data in trial_jpegs():
        expected, found = decode_image(data), decoder(data)
        if not isinstance(found, Picture):
            raise ValueError(
                "nvImageCodec decodes no JPEG on this GPU: it needs nvJPEG; install it with "
                "`pip install --group gpu-decoder`, or decode on the CPU"
            )
        pixels = found.resized((expected.shape[0], expected.shape[1]))
        apart = np.abs(pixels.astype(np.int16) - expected).mean()
        if apart > MOST_APART:
            raise ValueError(
                f"expected JPEGs within {MOST_APART:g} grey levels of libjpeg's on average, got "
                f"{apart:.1f} from nvImageCodec on this GPU; decode on the CPU"
            )


def _codec(device: int, kinds: Sequence[Any]) -> Any:
    backends = [nvimgcodec.Backend(kind) for kind in kinds]
    return nvimgcodec.Decoder(device_id=device, backends=backends, options=OPTIONS)
