"""The kernels of multi-scale deformable attention for tensors on a GPU."""

from plugins.cuda_kernels import CudaKernels, cuda_kernels
from plugins.triton_kernels import TritonKernels, triton_kernels


def gpu_kernels() -> CudaKernels | TritonKernels | None:
    """The best kernels that can run here: native ones, or else those in Triton."""
    return cuda_kernels() or triton_kernels()


def describe(kernels: CudaKernels | TritonKernels) -> str:
    """Which kernels these are, for the log."""
    if isinstance(kernels, TritonKernels):
        return "Triton kernels, as there are no native ones; `make plugins` with nvcc builds them"
    return "native kernels, CUDA"
