"""Measures how large activations get on the user's images: the ranges that int8 must represent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from bundle.detect import make_batch
from bundle.layout import INPUTS
from bundle.preprocess import Preprocess
from model.data.evaluation_data import EvaluationData
from model.progress import progress_bar

# With 30 images of the demo or of BCCD, AP varied by 0.1 with the choice of images.
NUM_IMAGES = 128


def measure_ranges(
    graph: Path,
    names: Sequence[str],
    *,
    dataset: EvaluationData,
    preprocess: Preprocess,
    batch_size: int,
) -> dict[str, float]:
    """Run images through a float32 graph and record how large its activations get.

    Args:
        graph: file of a graph in standard form, its weights beside it.
        names: of the activations, whose first axis is the batch.
        dataset: `NUM_IMAGES` of its images are run, evenly spread; all if it has fewer.
        batch_size: how many images the service may put in one batch.

    Returns:
        For each name the largest magnitude in an image, averaged over the images. No other
        statistic gave a better AP on both the demo and BCCD: docs/numerics.md.

    Raises:
        ValueError: there is no image, one cannot be read, or an activation is not finite.
    """
    if not len(dataset):
        raise ValueError("expected at least one image to calibrate on, got none")
    session = _open_session(graph, names)
    count = min(NUM_IMAGES, len(dataset))
    chosen = [number * len(dataset) // count for number in range(count)]
    runs = []
    with progress_bar(total=count, desc="calibrating", unit=" images", leave=False) as bar:
        for start in range(0, count, batch_size):
            indices = chosen[start : start + batch_size]
            batch = make_batch([dataset.read_image(index) for index in indices], preprocess)
            inputs = dict(zip(INPUTS, (batch.images, batch.padding_mask), strict=True))
            runs.append(session.run(None, inputs))
            bar.update(len(indices))
    ranges = {
        name: float(np.concatenate(maxima).mean())  # maxima: (B,) for every batch
        for name, maxima in zip(names, zip(*runs, strict=True), strict=True)
    }
    infinite = [name for name, value in ranges.items() if not np.isfinite(value)]
    if infinite:
        raise ValueError(f"the images cause activations that are not finite: {infinite[:5]}")
    return ranges


def _open_session(graph: Path, names: Sequence[str]) -> ort.InferenceSession:
    """The graph with the largest magnitude (B,) of each activation as its outputs.

    Nodes that they do not depend on are removed.
    """
    model = ir.load(graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    axis = ir.val("calibration.axis", const_value=ir.tensor(np.array([1], np.int64)))
    model.graph.register_initializer(axis)
    model.graph.outputs.clear()
    for name in names:
        magnitude = ir.node("Abs", [values[name]])
        rows = ir.node("Flatten", magnitude.outputs, attributes={"axis": 1})  # (B, all others)
        largest = ir.node("ReduceMax", [rows.outputs[0], axis], attributes={"keepdims": 0})  # (B,)
        model.graph.extend([magnitude, rows, largest])
        largest.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(largest.outputs[0])
    passes.RemoveUnusedNodesPass()(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about fusions that did not apply
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.parent)
    )
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
