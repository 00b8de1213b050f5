"""Everything that bench_engine measures, each by a function that opens it.

Peers are set up as their documentation shows and do the same work as a bundle's engine, from a
batch of images in memory to its top detections. Libraries are imported where they are used, since
each contestant runs in a separate process.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.engine_bundles import bundle_path
from bundle.layout import GRAPH_FILES, INPUTS, OUTPUTS, PLUGIN_FORM, STANDARD_FORM
from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from engines.base import Mode

Run = Callable[[], RawOutput | None]  # None if it only measures the machine


class Task(NamedTuple):
    """What to run: images of one size through one variant, with this many threads."""

    variant: str
    height: int
    width: int
    threads: int
    bundles: Path  # see `engine_bundles.bundle_path`

    def inputs(self, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """A photograph: images (B, H, W, 3) uint8 and padding_mask (B, H, W) bool, all False."""
        images = np.stack([resized_photograph(self.height, self.width)] * batch)
        return images, np.zeros(images.shape[:3], np.bool_)


def resized_photograph(height: int, width: int) -> np.ndarray:
    """A photograph of a size, (H, W, 3) uint8."""
    from export.judge.verify import photographs

    return np.asarray(Image.fromarray(photographs()[0]).resize((width, height)))


def open_huggingface(task: Task, *, mode: str) -> Run:
    """Hugging Face's model in PyTorch: `mode` is fp32, bf16 or compile."""
    import torch

    from benchmarks.huggingface_peer import build_peer, open_peer
    from model.config import Variant

    torch.set_num_threads(task.threads)
    images, _ = task.inputs()
    return open_peer(build_peer(Variant(task.variant)), images, mode=mode)


def open_onnxruntime(task: Task) -> Run:
    """ONNX Runtime on the graph in standard operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    path = bundle_path(task.bundles, task.variant, precision="fp32") / GRAPH_FILES[STANDARD_FORM]
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip(INPUTS, task.inputs(), strict=True))
    return lambda: RawOutput(*session.run(OUTPUTS, inputs))


def open_openvino(task: Task, *, hint: str) -> Run:
    """OpenVINO on the graph in standard operators."""
    import openvino

    path = bundle_path(task.bundles, task.variant, precision="fp32") / GRAPH_FILES[STANDARD_FORM]
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    inputs = dict(zip(INPUTS, task.inputs(), strict=True))

    def run() -> RawOutput:
        outputs = compiled(inputs)
        return RawOutput(*(outputs[name] for name in OUTPUTS))

    return run


def open_ours(task: Task, *, precision: str, mode: Mode = "latency", is_batch: bool = False) -> Run:
    """The engine that serves; with `is_batch`, on as many images as threads instead of one."""
    from engines.load import open_engine

    bundle = Bundle.load(bundle_path(task.bundles, task.variant, precision=precision))
    engine = open_engine(bundle, engine="openvino", threads=task.threads, mode=mode)
    if engine.info.precision != precision or engine.info.graph != PLUGIN_FORM:
        raise RuntimeError(f"expected {precision} with the native op, got {engine.info}")
    return partial(engine.run, *task.inputs(task.threads if is_batch else 1))


def open_peak(task: Task, *, precision: str) -> Run:
    """The fastest convolution or product of this precision, for the floor of the table."""
    import torch

    from benchmarks.floors import open_peak

    torch.set_num_threads(task.threads)
    compute = open_peak(precision)

    def run() -> None:
        compute()

    return run


Openers = dict[str, Callable[[Task], Run]]
PRECISIONS = ("fp32", "bf16", "int8")
ENGINES: Openers = {
    "hf": partial(open_huggingface, mode="fp32"),
    "hf-bf16": partial(open_huggingface, mode="bf16"),
    "hf-compile": partial(open_huggingface, mode="compile"),
    "onnxruntime": open_onnxruntime,
    "openvino": partial(open_openvino, hint="f32"),
    "openvino-bf16": partial(open_openvino, hint="bf16"),
    **{f"ours-{precision}": partial(open_ours, precision=precision) for precision in PRECISIONS},
}
PEAKS: Openers = {f"peak-{name}": partial(open_peak, precision=name) for name in PRECISIONS}
MODES: dict[str, Mode] = {"batch": "latency", "streams": "throughput"}
BATCHES: Openers = {
    f"ours-{precision}-{name}": partial(open_ours, precision=precision, is_batch=True, mode=mode)
    for precision in PRECISIONS
    for name, mode in MODES.items()
}
ALL = ENGINES | PEAKS | BATCHES
