"""Opens what decodes images: libraries for the CPU, or nvImageCodec on a GPU."""

from typing import Literal

from bundle.device_image import Decode
from bundle.preprocess import decode_image

DecoderName = Literal["cpu", "gpu", "nvimagecodec-on-cpu"]
REMEDY = "`pip install --group gpu-decoder`, or decode on the CPU"


def open_decoder(name: DecoderName, *, device: int = 0) -> Decode:
    """What decodes images.

    Args:
        name: "nvimagecodec-on-cpu" runs what "gpu" does, where there is no GPU, to compare it.
        device: the number of the GPU, of those that CUDA_VISIBLE_DEVICES allows.

    Raises:
        ValueError: a package or a GPU is missing, or the GPU decodes wrongly; says what to do.
    """
    if name == "cpu":
        return decode_image
    try:
        from engines.gpu.torch_jpegs import open_on_cpu, open_on_gpu
    except ImportError as error:
        raise ValueError(
            f"images cannot be decoded on a GPU ({error}); install what that needs with {REMEDY}"
        ) from error
    return open_on_gpu(device) if name == "gpu" else open_on_cpu()
