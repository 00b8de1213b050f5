"""ONNX Runtime's CUDA provider, for comparing TensorRT with the same bundle on a GPU."""

from bundle.manifest import Bundle
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine, Provider

# For a fair comparison: no rounding of float32, no search for convolutions at every new image size,
# and memory grows by what is needed instead of doubling.
CUDA = Provider(
    "CUDAExecutionProvider",
    {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    },
)


def open_on_cuda(bundle: Bundle, threads: int | None, *, device: int = 0) -> OnnxRuntimeEngine:
    """The standard graph with the CUDA provider. Raises ValueError like OnnxRuntimeEngine."""
    on_device = CUDA._replace(options=CUDA.options | {"device_id": str(device)})
    return OnnxRuntimeEngine(bundle, threads=threads, providers=(on_device,))
