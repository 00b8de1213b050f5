"""Whether nvImageCodec is installed; on a CPU, it decodes as libjpeg-turbo does."""

from importlib.util import find_spec

import pytest

HAS_NVIMAGECODEC = find_spec("nvidia") is not None and find_spec("nvidia.nvimgcodec") is not None
needs_nvimagecodec = pytest.mark.skipif(
    not HAS_NVIMAGECODEC, reason="no nvImageCodec: make install brings it on Linux, x86-64"
)
