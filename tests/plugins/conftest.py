"""The emulated CUDA kernels, for the tests of their gradients and of their launches."""

from pathlib import Path

import pytest

from plugins.cuda_kernels import CudaKernels
from tests.plugins.emulated import library


@pytest.fixture(scope="session")
def path() -> Path:
    return library()


@pytest.fixture(scope="session")
def kernels(path: Path) -> CudaKernels:
    """The kernels that PyTorch would run on a GPU, for tensors of this CPU."""
    return CudaKernels(path, device_type="cpu")
