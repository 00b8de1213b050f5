"""OpenVINO with the operator."""

import openvino as ov
import pytest

from plugins import library


def core_with_operator() -> ov.Core:
    """A core that knows MSDeformAttn; without the extension the test is skipped."""
    path = library.find(library.openvino_extension())
    if path is None:
        pytest.skip("the OpenVINO extension is not built: no C++ compiler")
    core = ov.Core()
    core.add_extension(str(path))
    return core
