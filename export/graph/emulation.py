"""Runs a half-precision graph on a CPU with a GPU's rounding, and finds its largest numbers.

A CPU runtime computes such a graph in float32 and drops the casts between its nodes. Here, every
half value of the graph is a float32 rounded to half, which is what a GPU stores after adding
products in float32.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from bundle.layout import GRAPH_FILES, INPUTS, STANDARD_FORM, WEIGHTS_FILES
from bundle.postprocess import RawOutput
from export.graph.half_precision import FLOAT, HALVES, write_half

# These nodes move or pick numbers that have been rounded already.
_MOVES = {
    *("Concat", "Expand", "Gather", "GatherElements", "MaxPool", "Relu", "Reshape", "Slice"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
}
_HALF_TYPES = set(HALVES.values())


class Magnitude(NamedTuple):
    """The largest absolute value that a node computed, and the node's place in the model."""

    largest: float
    operator: str
    place: str


class Emulation:
    """A float32 graph as it would be in half precision on a GPU."""

    def __init__(self, graph: Path, precision: str, *, scratch: Path) -> None:
        """Read the graph.

        Args:
            graph: in standard form.
            precision: "fp16" or "bf16".
            scratch: an empty directory that outlives this object.

        Raises:
            ValueError: see `write_half`.
        """
        model = ir.load(graph)
        write_half(model, precision)
        values = emulate(model)
        for value in values:
            absolute = ir.node("Abs", [value])
            largest = ir.node("ReduceMax", absolute.outputs, attributes={"keepdims": 0})
            (output,) = largest.outputs
            output.name, output.type, output.shape = f"{value.name}.peak", value.type, ir.Shape(())
            model.graph.extend([absolute, largest])
            model.graph.outputs.append(output)
        producers = [node for value in values if (node := value.producer()) is not None]
        self._places = [(node.op_type, place_of(node)) for node in producers]
        self._peaks = np.zeros(len(values), np.float32)
        self._session = open_session(model, scratch)

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """See `Engine.run`; the numbers are not finite if one was too large on the way."""
        inputs = dict(zip(INPUTS, (images, padding_mask), strict=True))
        scores, labels, boxes, *peaks = self._session.run(None, inputs)
        self._peaks = np.maximum(self._peaks, peaks)
        return RawOutput(scores, labels, boxes)

    @property
    def magnitudes(self) -> list[Magnitude]:
        """How large half values were before rounding, in the order of the graph."""
        return [
            Magnitude(float(peak), *place)
            for peak, place in zip(self._peaks, self._places, strict=True)
        ]


def emulate(model: ir.Model) -> list[ir.Value]:
    """Make every half value of a graph float32, rounded to its former type.

    Args:
        model: in standard form; changed in place.

    Returns:
        The computed ones of these values, before rounding, in the order of the graph.
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
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", FLOAT)
            if node.op_type not in _MOVES:
                computed.append(output)
                _round(model.graph, output, half)
    return computed


def open_session(model: ir.Model, scratch: Path) -> ort.InferenceSession:
    """A session for a graph in memory; the graph and its weights are written to `scratch`."""
    path = scratch / GRAPH_FILES[STANDARD_FORM]
    ir.save(model, path, external_data=WEIGHTS_FILES[STANDARD_FORM])
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def place_of(node: ir.Node) -> str:
    """The module whose weights a node computes with, or the nearest one before it."""
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
    return "input"


def _round(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    down = ir.node("Cast", [value], attributes={"to": half})
    up = ir.node("Cast", down.outputs, attributes={"to": FLOAT})
    for cast, dtype, suffix in ((down, half, "emulated.half"), (up, FLOAT, "emulated")):
        cast.outputs[0].name, cast.outputs[0].type = f"{value.name}.{suffix}", ir.TensorType(dtype)
    for user, index in list(value.uses()):
        if user is not down:
            user.replace_input_with(index, up.outputs[0])
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [down, up])
