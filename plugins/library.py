"""Where `python -m plugins.build` puts native libraries."""

from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "plugins"

# For tensors on a GPU, whatever framework they are from.
CUDA_KERNELS = "libms_deform_attn_cuda.so"

# For TensorRT 10 and 11, whose plugins have the same interface.
TENSORRT_PLUGIN = "libms_deform_attn_tensorrt.so"


def openvino_extension() -> str:
    """File name of the extension for the installed OpenVINO; it works with no other release."""
    return f"libms_deform_attn_openvino_{version('openvino')}.so"


def find(name: str) -> Path | None:
    """The library with this file name, or None if it was not built."""
    path = FOLDER / name
    return path if path.exists() else None
