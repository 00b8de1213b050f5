"""ONNX Runtime on an NVIDIA GPU: its CUDA and TensorRT providers, which run the same bundle."""

import logging
from pathlib import Path

from bundle.manifest import CACHE_NAME, Manifest
from bundle.tensorrt_plan import HALF_FORM, BatchShape, default_profiles, form_for_tensorrt
from engines.base import graph_path
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine, Provider
from engines.gpu.onnx_domain import rename_domain
from engines.gpu.tensorrt_runtime import (
    PLUGIN_OPERATOR,
    find_plugin,
    load_plugin,
    load_tensorrt,
)
from engines.gpu.tensorrt_tensors import dims_of

logger = logging.getLogger(__name__)

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
TENSORRT_MAJOR = "10"  # that onnxruntime-gpu is linked to, as of 1.31
PLUGIN_DOMAIN = "trt.plugins"  # in which ONNX Runtime finds what TensorRT has registered


def open_on_cuda(directory: Path, manifest: Manifest, threads: int | None) -> OnnxRuntimeEngine:
    """The standard graph with the CUDA provider. Raises ValueError as OnnxRuntimeEngine does."""
    return OnnxRuntimeEngine(directory, manifest, threads=threads, providers=(CUDA,))


def open_on_tensorrt(directory: Path, manifest: Manifest, threads: int | None) -> OnnxRuntimeEngine:
    """The graph with the TensorRT provider, which builds its engines at the first run.

    With MSDeformAttn nodes where the plugin can be registered, else with standard operators.
    Raises ValueError as OnnxRuntimeEngine does.
    """
    form = form_for_tensorrt(manifest.graphs)
    model: bytes | None = None
    paths: dict[str, str] = {}
    try:
        plugin = _register_plugin(form)
    except ValueError as error:
        logger.warning("ONNX Runtime runs the graph of standard operators, slower: %s", error)
        form = "standard"
    else:
        graph = graph_path(directory, manifest, form).read_bytes()
        model = rename_domain(graph, "detr", PLUGIN_DOMAIN)
        paths["trt_extra_plugin_lib_paths"] = str(plugin)
    options = _tensorrt_options(directory, manifest, form) | paths
    providers = (Provider("TensorrtExecutionProvider", options), CUDA)
    return OnnxRuntimeEngine(
        directory, manifest, threads=threads, graph=form, providers=providers, model=model
    )


def _register_plugin(form: str) -> Path:
    """Make the operator known to the TensorRT that ONNX Runtime will use, and return its library.

    ONNX Runtime only opens the libraries that it is given, which registers no plugin of the kind
    that registers when TensorRT loads it; but both see what is registered in the process.
    """
    trt = load_tensorrt()
    if trt.__version__.split(".")[0] != TENSORRT_MAJOR:
        raise ValueError(
            f"expected TensorRT {TENSORRT_MAJOR}, which ONNX Runtime uses, got {trt.__version__}"
        )
    if form == "standard":
        raise ValueError(f"the bundle has no graph with {PLUGIN_OPERATOR}")
    plugin = find_plugin()
    load_plugin(trt, plugin)
    assert plugin is not None
    return plugin


def _tensorrt_options(directory: Path, manifest: Manifest, form: str) -> dict[str, str]:
    profiles = default_profiles(manifest.preprocess)
    largest = BatchShape(*map(max, zip(*(profile.max for profile in profiles), strict=True)))
    cache = str(directory / CACHE_NAME)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
        # What the graph holds; TensorRT 10 asks for leave to use it.
        "trt_fp16_enable": str(int(form == HALF_FORM and manifest.precision != "bf16")),
        "trt_bf16_enable": str(int(form == HALF_FORM and manifest.precision == "bf16")),
        "trt_int8_enable": str(int(manifest.precision == "int8")),
        "trt_profile_min_shapes": _shapes(manifest, profiles[0].min),
        "trt_profile_opt_shapes": _shapes(manifest, profiles[0].opt),
        "trt_profile_max_shapes": _shapes(manifest, largest),
    }


def _shapes(manifest: Manifest, shape: BatchShape) -> str:
    """images:1x64x64x3,padding_mask:1x64x64"""
    return ",".join(
        f"{spec.name}:{'x'.join(map(str, dims_of(spec, shape)))}" for spec in manifest.inputs
    )
