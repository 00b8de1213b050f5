"""What every test of this folder needs: a GPU. Without one the run fails; nothing is skipped."""

import pytest

from tests.export.conftest import exported  # noqa: F401  # the fixture
from tests.gpu.one_node import Gpu, find_gpu


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    """TensorRT, CUDA and the plugin of this machine."""
    try:
        return find_gpu()
    except ValueError as error:
        pytest.exit(f"there is nothing to run these tests on: {error}", returncode=1)
