"""Whole models on a GPU, each by a function that opens it.

A run begins with a batch of images in the host's memory and ends with the detections there, as in
the service.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants import resized_photograph
from benchmarks.engine_bundles import bundle_path
from benchmarks.gpu_bundles import PRECISIONS, checkpoint_path
from benchmarks.gpu_clock import forget_memory, time_runs
from benchmarks.gpu_rounds import Times, Turn
from benchmarks.operator_kernels import Kind, use_kernels
from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import BatchShape, ShapeProfile, form_for_tensorrt
from engines.base import Engine
from engines.load import open_engine
from export.bundle_writer import preprocess_of
from export.judge.agreement import compare
from model.checkpoints.checkpoint_file import build_model, load_checkpoint
from model.config import Variant
from model.network.inference import DetectionModel

TURN_S = 0.3
TYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
YARDSTICK = "PyTorch, eager, fp32"


class ModelTask(NamedTuple):
    """A batch of images of one size through a variant."""

    variant: str
    batch: int
    height: int
    width: int
    device: str
    bundles: Path  # see `engine_bundles.bundle_path`

    def __str__(self) -> str:
        return f"{self.variant}, {self.batch} x {self.height} x {self.width}"

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """A photograph: images (B, H, W, 3) uint8 and padding_mask (B, H, W) bool, all False."""
        images = np.stack([resized_photograph(self.height, self.width)] * self.batch)
        return images, np.zeros(images.shape[:3], np.bool_)

    def bundle(self, precision: str) -> Bundle:
        """The bundle in a precision."""
        return Bundle.load(bundle_path(self.bundles, self.variant, precision=precision))


# --- the contestants


def open_model(name: str, task: ModelTask) -> tuple[Turn, dict[str, Any]]:
    """A contestant; about it are its detections, and what else is worth a word."""
    run = MODELS[name](task)
    output = run()

    def turn() -> Times:
        ms = time_runs(run, at_least_s=TURN_S if task.device == "cuda" else 0.0)
        forget_memory(task.device)
        return {"run": ms / (2 if name == AT_ONCE else 1)}

    return turn, {"output": first_image(output)}


def first_image(output: RawOutput) -> RawOutput:
    """The detections of the first image of a batch."""
    return RawOutput(output.scores[:1], output.labels[:1], output.boxes[:1])


Run = Callable[[], RawOutput]


def open_pytorch(task: ModelTask, *, precision: str, kernels: Kind, is_compiled: bool) -> Run:
    """The model of training in PyTorch; in half precision, by autocast. Without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    use_kernels(kernels, task.device)
    checkpoint = load_checkpoint(checkpoint_path(task.bundles, task.variant))
    model = DetectionModel(build_model(checkpoint), preprocess_of(checkpoint))
    model = model.to(task.device).eval().requires_grad_(False)
    network: Callable[..., tuple[Tensor, ...]] = torch.compile(model) if is_compiled else model
    inputs, dtype = task.inputs(), TYPES[precision]

    @torch.inference_mode()
    def run() -> RawOutput:
        images, mask = (torch.from_numpy(part).to(task.device) for part in inputs)
        with torch.autocast(task.device, dtype, enabled=dtype is not None):
            found = network(images, mask)
        return RawOutput(*(part.cpu().numpy() for part in found))

    return run


def open_huggingface(task: ModelTask, *, precision: str) -> Run:
    """Hugging Face's model in PyTorch; its pixels are normalised and on the GPU beforehand."""
    from benchmarks.huggingface_peer import build_peer, open_peer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = build_peer(Variant(task.variant)).to(task.device)
    return open_peer(model, task.inputs()[0], mode=precision, device=task.device)


def open_torch_cuda(task: ModelTask, *, precision: str, at_once: int = 1) -> Run:
    """The engine torch-cuda, with as many batches at once as threads."""
    bundle = task.bundle(precision)
    if task.device == "cpu":
        from engines.gpu.torch_cuda import open_on_cpu

        engine: Engine = open_on_cpu(bundle)
    else:
        engine = open_engine(bundle, engine="torch-cuda")
    if engine.info.precision != precision:
        raise ValueError(f"expected {precision}, got {engine.info}")
    return _running(engine, task, at_once)


def open_tensorrt(task: ModelTask, *, precision: str) -> Run:
    """The engine tensorrt, on a plan for batches of this size."""
    from benchmarks.one_node import find_gpu
    from engines.gpu.tensorrt_builder import BuildOptions, build_plan
    from engines.gpu.tensorrt_engine import TensorRTEngine
    from export.graph.tensorrt_plan import TIMING_CACHE

    gpu, bundle = find_gpu(), task.bundle(precision)
    manifest = bundle.manifest
    form = form_for_tensorrt(manifest.graphs)
    shape = BatchShape(task.batch, task.height, task.width)
    profiles = (ShapeProfile(min=shape._replace(batch=1), opt=shape, max=shape),)
    TIMING_CACHE.parent.mkdir(parents=True, exist_ok=True)
    options = BuildOptions(profiles, gpu.plugin, timing_cache=TIMING_CACHE)
    plan = build_plan(gpu.trt, bundle.graph(form), inputs=manifest.inputs, options=options)
    # Its images are all of this size, so no other has to fit.
    sides = {"short_side": min(shape[1:]), "long_side": min(shape[1:])}
    fitting = manifest.model_copy(
        update={"preprocess": manifest.preprocess.model_copy(update=sides)}
    )
    engine = TensorRTEngine(
        *(fitting, plan),
        profiles=profiles,
        trt=gpu.trt,
        cuda=gpu.cuda,
        max_graphs=4,
        graph=form,
    )
    return _running(engine, task, at_once=1)


def _running(engine: Engine, task: ModelTask, at_once: int) -> Run:
    inputs = task.inputs()
    for _ in range(3):  # launched, captured, replayed
        engine.run(*inputs)
    if at_once == 1:
        return partial(engine.run, *inputs)
    pool = ThreadPoolExecutor(at_once)

    def run() -> RawOutput:
        *_, last = pool.map(lambda _: engine.run(*inputs), range(at_once))
        return last

    return run


AT_ONCE = "**torch-cuda, fp16, two batches at once**"
_IN_PYTORCH: dict[str, tuple[Kind, bool]] = {
    "PyTorch, eager": ("reference", False),
    "PyTorch, torch.compile": ("reference", True),
    "our operator in PyTorch, eager": ("ours", False),
}
MODELS: dict[str, Callable[[ModelTask], Run]] = {
    f"{name}, {precision}": partial(
        open_pytorch, precision=precision, kernels=kernels, is_compiled=is_compiled
    )
    for name, (kernels, is_compiled) in _IN_PYTORCH.items()
    for precision in PRECISIONS
}
for _name, _opener in (
    ("Hugging Face, {}", open_huggingface),
    ("**torch-cuda, {}**", open_torch_cuda),
    ("**TensorRT, {}**", open_tensorrt),
):
    MODELS |= {_name.format(each): partial(_opener, precision=each) for each in PRECISIONS}
MODELS[AT_ONCE] = partial(open_torch_cuda, precision="fp16", at_once=2)


# --- what the table says about a contestant


def agreement(exact: RawOutput, found: RawOutput, *, task: ModelTask) -> tuple[float, float]:
    """The share of the detections of float32 that were found, and the largest error of a score."""
    image, bundle = task.inputs()[0][0], task.bundle("fp32")
    try:
        same = compare(
            lambda *_: exact,
            lambda *_: found,
            images=[image],
            preprocess=bundle.manifest.preprocess,
        )
    except ValueError:  # another number of detections
        return 0.0, math.nan
    return same.share, same.score_error
