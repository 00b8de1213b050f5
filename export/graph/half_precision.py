"""Writes half precision into an ONNX graph: weights and activations in float16 or bfloat16.

What a number means, read from the flow of data, decides what stays float32; names and places in the
graph do not matter. A *learned layer* is a Conv, MatMul or Gemm with constant weights. These stay
float32:

geometry: everything computed from the inputs before the first learned layer: pixels while they are
    normalised, padding masks while they are counted, valid ratios, the encoder's reference points
    and anchors, angles of the position encoding and their sines. A coordinate near 1 moves in steps
    of 0.08 px on a level 167 px wide, angles on padding reach 3e6, and an anchor of 1e4 swallows
    what is added to it.
locations: what feeds `reference_points` of MSDeformAttn, from the last learned layer on, including
    that layer: box deltas, their sum with the anchor, sigmoid and its inverse. The reasons are the
    same, and errors pass from layer to layer.
ranks: what feeds TopK, from the last learned layer on. Logits near -5 move in steps of 0.004 in
    float16 and 0.03 in bfloat16, so many proposals would share one.
results: what feeds the outputs of the graph, from the last learned layer on. Scores and boxes are
    returned in float32.
angles: what feeds Sin and Cos, from the last learned layer on. An angle of 6 moves in steps of
    0.004.
statistics: ReduceSum and what feeds it, back to the layer before, which stays half: mean and
    variance of GroupNorm. They sum over a whole level: 133,000 numbers per group at 800x1333.
sampling: in the standard form, GridSample, its grid, and everything from its result to the next
    learned layer, softmax included: what MSDeformAttn does inside, in float32 by its contract. Its
    `value`, `sampling_offsets` and `attention_logits` are half, its `reference_points` are not.

LayerNormalization needs no rule: ONNX has a separate type for its statistics, float32.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from bundle.layout import GRAPH_FILES, HALF_FORM, OPERATOR, PLUGIN_FORM, WEIGHTS_FILES
from bundle.manifest import Bundle
from export.graph.trace import EXTERNAL_FROM_BYTES

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
BF16_OPSET = 22  # the first in which Conv, MaxPool and others take bfloat16
LEARNED_LAYERS = {"Conv", "Gemm", "MatMul"}
# In group norm over valid cells, sums and counts of a whole map exceed float16; the reciprocal of
# the deviation is the first number after them that does not.
STATISTICS = {"ReduceSum", "Reciprocal"}
ANGLES = {"Sin", "Cos"}
REFERENCE_POINTS = 2  # index among the inputs of MSDeformAttn

FLOAT = ir.DataType.FLOAT


def write_half(model: ir.Model, precision: str) -> None:
    """Make a float32 graph compute in half precision wherever no rule forbids it.

    Inputs and outputs keep their types. Every weight is stored in the type it is used in.

    Args:
        model: in either form; changed in place. The type of every value must be known.
        precision: "fp16" or "bf16".

    Raises:
        ValueError: a weight is too large for float16.
    """
    half = HALVES[precision]
    casts = _Casts(model.graph)
    kept = float32_nodes(model.graph)
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FLOAT, half) or node.op_type == "Shape":
                continue
            is_exact = node in kept or _is_reference_points(node, index)
            node.replace_input_with(index, casts.of(value, FLOAT if is_exact else half))
        for output in node.outputs:
            if output.dtype is FLOAT and node not in kept:
                output.type = ir.TensorType(half)
    if half is ir.DataType.BFLOAT16:
        model.opset_imports[""] = max(model.opset_imports[""], BF16_OPSET)
    passes.RemoveUnusedNodesPass()(model)


def add_half_graph(bundle: Bundle, precision: str, *, model: ir.Model | None = None) -> Bundle:
    """Write a half-precision copy of the plugin graph beside it, with its own weights.

    Args:
        precision: "fp16" or "bf16".
        model: the graph to be in half precision, which is changed; by default the plugin graph.

    Raises:
        ValueError: a weight is too large, or the graph is not valid ONNX.
    """
    if model is None:
        model = ir.load(bundle.graph(PLUGIN_FORM))
    write_half(model, precision)
    path = bundle.directory / GRAPH_FILES[HALF_FORM]
    ir.save(
        *(model, path),
        external_data=WEIGHTS_FILES[HALF_FORM],
        size_threshold_bytes=EXTERNAL_FROM_BYTES,
        alignment=4096,
    )
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ValueError(f"the graph in {precision} is not valid ONNX: {error}") from error
    return bundle.with_manifest(graphs=bundle.manifest.graphs | {HALF_FORM: path.name})


def float32_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes of a float32 graph that stay float32, by the rules at the top."""
    flow = _flow(graph)
    exact: list[ir.Value | None] = [value for value in graph.outputs if value.dtype is FLOAT]
    for node in graph:
        if node.op_type == OPERATOR:
            exact.append(node.inputs[REFERENCE_POINTS])
        if node.op_type in ANGLES | {"TopK"}:
            exact += node.outputs
    kept = flow.geometry | _sources(exact, ends=flow.layers) | _sampling(graph, flow.layers)
    kept |= _statistics(graph, flow.layers)
    for node in reversed(graph):  # a constant stays float32 if a node that uses it does
        if node not in flow.layers and flow.constants.issuperset(node.outputs):
            kept |= {node for output in node.outputs if kept.intersection(output.consumers())}
    return kept


class _Flow(NamedTuple):
    constants: set[ir.Value]  # values that depend on no input
    layers: set[ir.Node]  # learned layers
    geometry: set[ir.Node]  # nodes before any learned layer


def _flow(graph: ir.Graph) -> _Flow:
    constants, layers, geometry = set(graph.initializers.values()), set(), set()
    for node in graph:
        numbers = _numbers(node)
        if node.op_type in LEARNED_LAYERS and node.inputs[1] in constants:
            layers.add(node)
        if numbers and constants.issuperset(numbers):
            constants.update(node.outputs)
        elif node not in layers and all(
            value in constants or value.producer() in geometry for value in numbers
        ):
            geometry.add(node)
    return _Flow(constants, layers, geometry)


def _sources(values: Iterable[ir.Value | None], *, ends: set[ir.Node]) -> set[ir.Node]:
    """The nodes that compute float values, back to and including the nearest of `ends`."""
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            pending += [] if node in ends else _numbers(node)
    return found


def _sampling(graph: ir.Graph, layers: set[ir.Node]) -> set[ir.Node]:
    """The standard form of MSDeformAttn, between the learned layers around it."""
    samplers = {node for node in graph if node.op_type == "GridSample"}
    sums: set[ir.Node] = set()
    pending = list(samplers)
    while pending:
        for node in pending.pop().successors():
            if node not in layers | sums:
                sums.add(node)
                pending.append(node)
    grids = [node.inputs[1] for node in samplers]
    summands = [value for node in sums for value in _numbers(node)]
    return samplers | sums | _sources([*grids, *summands], ends=layers | samplers) - layers


def _statistics(graph: ir.Graph, layers: set[ir.Node]) -> set[ir.Node]:
    """Mean and deviation of whole maps, back to the learned layers before them."""
    sums = [value for node in graph if node.op_type in STATISTICS for value in node.outputs]
    samplers = {node for node in graph if node.op_type == "GridSample"}
    return _sources(sums, ends=layers | samplers) - layers


def _is_reference_points(node: ir.Node, index: int) -> bool:
    return node.op_type == OPERATOR and index == REFERENCE_POINTS


def _numbers(node: ir.Node) -> list[ir.Value]:
    """The inputs that a node computes with: floats, quantised or not, but no sizes or indices."""
    return [
        value
        for value in node.inputs
        if value is not None and (value.dtype is FLOAT or _is_quantised(value))
    ]


def _is_quantised(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "QuantizeLinear"


class _Casts:
    """The values of a graph, cast to other types, each once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as that type: itself, a converted weight, or the output of a Cast."""
        if value.dtype is dtype:
            return value
        if (value, dtype) not in self._made:
            make = self._converted if value.is_initializer() else self._cast
            self._made[value, dtype] = make(value, dtype)
        return self._made[value, dtype]

    def _converted(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        exact = value.const_value.numpy()
        with np.errstate(over="ignore"):
            rounded = exact.astype(dtype.numpy())
        if np.isfinite(exact).all() and not np.isfinite(rounded).all():
            raise ValueError(
                f"{value.name} reaches {np.abs(exact).max():.3g}, too large for {dtype}; "
                "export with PRECISION=bf16 or fp32"
            )
        name = f"{value.name}.{dtype.name.lower()}"
        converted = ir.val(name, const_value=ir.tensor(rounded, dtype=dtype, name=name))
        self._graph.register_initializer(converted)
        return converted

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        cast = ir.node("Cast", [value], attributes={"to": dtype})
        (output,) = cast.outputs
        output.name, output.type = f"{value.name}.{dtype.name.lower()}", ir.TensorType(dtype)
        producer = value.producer()
        assert producer is not None  # no input of the graph is a float
        self._graph.insert_after(producer, cast)
        return output
