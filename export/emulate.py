"""A half-precision graph on a CPU with the rounding of a GPU, and how large its numbers become.

A CPU runtime computes such a graph in float32 and drops the casts between its nodes. Here every
value that is half in the graph is a float32 that has been rounded to it, which is what a GPU stores
after it has added products in float32.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from export.precision import FLOAT, HALVES

# What moves or picks numbers leaves them as round as they were.
_MOVES = {
    *("Concat", "Expand", "Gather", "GatherElements", "MaxPool", "Relu", "Reshape", "Slice"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
}
_HALF_TYPES = set(HALVES.values())


class Magnitude(NamedTuple):
    """The largest absolute value that a node computed, and where the node is in the model."""

    largest: float
    operator: str
    place: str


def emulate(model: ir.Model, *, rounds: bool = True) -> list[ir.Value]:
    """Make every half value of a graph float32, rounded to its former type.

    Args:
        model: in standard form; changed in place.
        rounds: False leaves what is computed unrounded, so that it cannot overflow.

    Returns:
        The values that were half, weights apart.
    """
    for value in model.graph.initializers.values():
        if value.dtype in _HALF_TYPES:
            assert value.const_value is not None
            exact = value.const_value.numpy().astype(np.float32)
            value.const_value, value.type = ir.tensor(exact, name=value.name), ir.TensorType(FLOAT)
    computed = []
    for node in list(model.graph):
        for output in node.outputs:
            if output.dtype not in _HALF_TYPES:
                continue
            half, output.type = output.dtype, ir.TensorType(FLOAT)
            computed.append(output)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", FLOAT)
            if rounds and not _only_moves(output):
                _round(model.graph, output, half)
    return computed


def magnitudes(
    graph: Path, batches: Iterable[Mapping[str, npt.NDArray[Any]]], scratch: Path
) -> list[Magnitude]:
    """How large the half values of a graph become where nothing is rounded, largest first.

    Args:
        graph: a half-precision graph in standard form.
        batches: inputs by name.
        scratch: an empty directory, for a graph that measures itself.
    """
    model = ir.load(graph)
    values = [value for value in emulate(model, rounds=False) if not _only_moves(value)]
    for value in values:
        absolute = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", absolute.outputs, attributes={"keepdims": 0})
        (output,) = largest.outputs
        output.name, output.type, output.shape = f"{value.name}.peak", value.type, ir.Shape(())
        model.graph.extend([absolute, largest])
        model.graph.outputs.append(output)
    session = open_session(model, scratch)
    num_peaks = len(values)
    peaks = np.zeros(num_peaks, np.float32)
    for batch in batches:
        peaks = np.maximum(peaks, session.run(None, dict(batch))[-num_peaks:])
    found = [
        Magnitude(float(peak), node.op_type, place_of(node))
        for peak, value in zip(peaks, values, strict=True)
        if (node := value.producer()) is not None
    ]
    return sorted(found, reverse=True)


def open_session(model: ir.Model, scratch: Path) -> ort.InferenceSession:
    """A session of a graph that is no file yet; its weights are written to `scratch`."""
    path = scratch / "model.onnx"
    ir.save(model, path, external_data="weights.bin")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def place_of(node: ir.Node) -> str:
    """The module whose weights a node computes with, or which is before it."""
    pending, seen = [node], {node}
    for near in pending:  # grows
        for value in near.inputs:
            name = "" if value is None or value.name is None else value.name
            if name.startswith("detector.") and value is not None and value.is_initializer():
                for half in HALVES.values():
                    name = name.removesuffix(f".{half.name.lower()}")
                return name.removeprefix("detector.").rpartition(".")[0]
        new = [other for other in near.predecessors() if other not in seen]
        seen.update(new)
        pending += new
    return ""


def _only_moves(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in _MOVES


def _round(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    down = ir.node("Cast", [value], attributes={"to": half})
    up = ir.node("Cast", down.outputs, attributes={"to": FLOAT})
    for cast, dtype, suffix in ((down, half, "half"), (up, FLOAT, "rounded")):
        cast.outputs[0].name, cast.outputs[0].type = f"{value.name}.{suffix}", ir.TensorType(dtype)
    for user, index in list(value.uses()):
        if user is not down:
            user.replace_input_with(index, up.outputs[0])
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [down, up])
