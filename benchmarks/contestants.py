"""Everything that bench_engine measures, each by a function that opens it.

Peers are set up as their documentation shows and do the same work as the engine of a bundle: from
one batch of images in memory to its top detections. Libraries are imported where they are used, as
each contestant has a process of its own.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.engine_bundles import bundle_path
from service.engines.base import RawOutput

Run = Callable[[], RawOutput | None]  # None from those that only measure the machine


class Task(NamedTuple):
    """What is to be run: images of one size through one variant, with this many threads."""

    variant: str
    height: int
    width: int
    threads: int
    bundles: Path  # see `engine_bundles.bundle_path`

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """A photograph: images (1, H, W, 3) uint8 and padding_mask (1, H, W) bool, all False."""
        from export.verify import photographs

        photo = Image.fromarray(photographs()[0]).resize((self.width, self.height))
        return np.array(photo)[None], np.zeros((1, self.height, self.width), np.bool_)


def open_huggingface(task: Task, *, mode: str) -> Run:
    import torch

    from benchmarks.huggingface_peer import build_peer, open_peer
    from model.config import Variant

    torch.set_num_threads(task.threads)
    images, _ = task.inputs()
    return open_peer(build_peer(Variant(task.variant)), images, mode)


def open_onnxruntime(task: Task) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    path = bundle_path(task.bundles, task.variant, "fp32") / "model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip(("images", "padding_mask"), task.inputs(), strict=True))
    return lambda: RawOutput(*session.run(RawOutput._fields, inputs))


def open_openvino(task: Task, *, precision: str) -> Run:
    """OpenVINO on the graph in standard operators."""
    import openvino

    path = bundle_path(task.bundles, task.variant, "fp32") / "model.onnx"
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    inputs = dict(zip(("images", "padding_mask"), task.inputs(), strict=True))

    def run() -> RawOutput:
        outputs = compiled(inputs)
        return RawOutput(*(outputs[name] for name in RawOutput._fields))

    return run


def open_ours(task: Task, *, precision: str) -> Run:
    from service.engines.load import open_engine

    directory = bundle_path(task.bundles, task.variant, precision)
    _, engine = open_engine(directory, engine="openvino", threads=task.threads)
    return partial(engine.run, *task.inputs())


def open_peak(task: Task, *, precision: str) -> Run:
    import torch

    from benchmarks.floors import open_peak

    torch.set_num_threads(task.threads)
    return open_peak(precision)


ENGINES: dict[str, Callable[[Task], Run]] = {
    "hf": partial(open_huggingface, mode="fp32"),
    "hf-bf16": partial(open_huggingface, mode="bf16"),
    "hf-compile": partial(open_huggingface, mode="compile"),
    "onnxruntime": open_onnxruntime,
    "openvino": partial(open_openvino, precision="fp32"),
    "openvino-bf16": partial(open_openvino, precision="bf16"),
    "ours-fp32": partial(open_ours, precision="fp32"),
    "ours-bf16": partial(open_ours, precision="bf16"),
    "ours-int8": partial(open_ours, precision="int8"),
}
PEAKS: dict[str, Callable[[Task], Run]] = {
    f"peak-{precision}": partial(open_peak, precision=precision)
    for precision in ("fp32", "bf16", "int8")
}
