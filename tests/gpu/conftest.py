"""The GPU that every test in this folder needs. Without one the run fails; nothing is skipped."""

import pytest

from benchmarks.one_node import Gpu, find_gpu
from tests.export.conftest import exported  # noqa: F401  # the fixture


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    """TensorRT, CUDA and the plugin of this machine."""
    try:
        return find_gpu()
    except ValueError as error:
        pytest.exit(f"there is nothing to run these tests on: {error}", returncode=1)
