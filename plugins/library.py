"""Where `python -m plugins.build` puts native libraries."""

from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "plugins"

# For TensorRT 10 and 11, whose interface of plugins is the same.
TENSORRT_PLUGIN = "libms_deform_attn_tensorrt.so"


def openvino_extension() -> str:
    """File name of the extension for the OpenVINO that is installed; it works with no other."""
    return f"libms_deform_attn_openvino_{version('openvino')}.so"


def find(name: str) -> Path | None:
    """The library of this file name, or None where it was not built."""
    path = FOLDER / name
    return path if path.exists() else None
