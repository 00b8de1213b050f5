"""The GPU that every test in this folder needs: without one the run fails.

What needs more than this machine has is left out, and named in the summary.
"""

import pytest
import torch

from benchmarks.one_node import Gpu, find_gpu
from engines.gpu.cuda import load_cuda
from tests.export.conftest import exported  # noqa: F401  # the fixture


@pytest.fixture(scope="session", autouse=True)
def _any_gpu() -> None:
    """A GPU that PyTorch or the CUDA runtime can use."""
    if torch.cuda.is_available():
        return
    try:
        load_cuda()
    except ValueError as error:
        pytest.exit(f"there is nothing to run these tests on: {error}", returncode=1)


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """TensorRT, CUDA and the plugin of this machine."""
    try:
        return find_gpu()
    except ValueError as error:
        pytest.skip(f"left out, the tests of TensorRT: {error}")
