"""ONNX Runtime's CUDA provider: the same bundle on an NVIDIA GPU, to compare TensorRT with."""

from bundle.manifest import Bundle
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine, Provider

# Like with like: float32 is not rounded, no search for convolutions whenever an image of another
# size arrives, and memory grows by what is needed instead of by doubling.
CUDA = Provider(
    "CUDAExecutionProvider",
    {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    },
)


def open_on_cuda(bundle: Bundle, threads: int | None) -> OnnxRuntimeEngine:
    """The standard graph with the CUDA provider. Raises ValueError as OnnxRuntimeEngine does."""
    return OnnxRuntimeEngine(bundle, threads=threads, providers=(CUDA,))
