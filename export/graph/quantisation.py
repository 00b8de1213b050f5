"""Writes int8 or fp8 into the ONNX graphs: QuantizeLinear and DequantizeLinear where it pays.

The flow of data decides what is quantised; names and places in the graph do not matter. A *learned
layer* is a Conv or MatMul with constant weights.

| rule | because |
|---|---|
| 8 bits: learned layers that a `value` of MSDeformAttn depends on: backbone, neck, encoder and \
value projections | they run over maps and tokens, and do nearly all multiplications |
| float: all other layers: the decoder, the heads, what ranks proposals | they run over a few \
hundred queries, and directly give scores, boxes and reference points |
| float: the convolution that reads the image | its three channels do not fill int8's dot \
products, so int8 would save no time, and its rounding would affect everything |
| 8 bits: what a convolution's output is added to | the convolution then adds it in registers and \
writes 8 bits itself |
| float: all other sums, normalisation, softmax, positions, MSDeformAttn | they are cheap, or no \
runtime has them in int8 |

Every zero point is 0, because TensorRT accepts no other, and biases are float, because it does not
accept int32. In int8, weights have a scale per output channel, activations a single one. Weights
go to 64 only: a CPU without VNNI multiplies them by numbers of up to 255 and adds two products in
16 bits, where more would saturate. In fp8 (E4M3), which only TensorRT computes in, every tensor has
a single scale: with one per channel, TensorRT multiplies in float16. It is a power of two, so
float16 holds it exactly, and no fp8 loses a digit by it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from bundle.layout import OPERATOR, PLUGIN_FORM, STANDARD_FORM
from bundle.manifest import Bundle
from export.graph.calibration import measure_ranges
from export.graph.trace import Graphs
from model.data.evaluation_data import EvaluationData

OUTPUT_AXIS = {"Conv": 0, "MatMul": 1}  # of the weights of layers that can be quantised
SMALLEST_SCALE = 2.0**-14  # in fp8: the smallest normal float16
MIN_CHANNELS = 4  # that a layer reads: one instruction adds up this many products
VALUE = 0  # index among the inputs of MSDeformAttn

FLOAT = ir.DataType.FLOAT


class EightBits(NamedTuple):
    """A type of 8 bits, and the largest numbers of it that are used."""

    name: str
    dtype: ir.DataType
    largest: float  # activation
    largest_weight: float


# Without -128, so that the range is symmetric; 2 * 255 * 64 is less than 2**15.
INT8 = EightBits("int8", ir.DataType.INT8, 127, 64)
FP8 = EightBits("fp8", ir.DataType.FLOAT8E4M3FN, 448, 448)


class Reader(NamedTuple):
    """An input of a node: the name of the node's output, and which of its inputs."""

    output: str
    place: int


class Plan(NamedTuple):
    """What becomes 8 bits, by the names of tensors, which both forms of a graph share.

    activations: name -> the inputs that read it in 8 bits. layers: names of the outputs of the
    layers whose weights become 8 bits.
    """

    activations: dict[str, list[Reader]]
    layers: list[str]


def quantise(bundle: Bundle, images: EvaluationData, *, kind: EightBits) -> Graphs:
    """Both forms of a bundle's graph in 8 bits, calibrated on images.

    Raises:
        ValueError: see `measure_ranges`.
    """
    graphs = _read_graphs(bundle)
    plan = plan_quantisation(graphs.plugin.graph)
    ranges = measure_ranges(
        bundle.graph(STANDARD_FORM),
        list(plan.activations),
        dataset=images,
        preprocess=bundle.manifest.preprocess,
        batch_size=bundle.manifest.max_batch_size,
    )
    write_quantised(graphs, plan, ranges=ranges, kind=kind)
    return graphs


def plan_quantisation(plugin: ir.Graph) -> Plan:
    """Apply the rules at the top to a graph in plugin form."""
    layers = _layers_before_values(plugin)
    activations: dict[str, list[Reader]] = defaultdict(list)
    for layer in layers:
        activations[_name(layer.inputs[0])].append(Reader(_name(layer.outputs[0]), 0))
    convolutions = [layer for layer in layers if layer.op_type == "Conv"]
    for node in plugin:
        index = _summand(node, convolutions)
        if index is not None:
            activations[_name(node.inputs[index])].append(Reader(_name(node.outputs[0]), index))
    return Plan(dict(activations), [_name(layer.outputs[0]) for layer in layers])


def write_quantised(
    graphs: Graphs, plan: Plan, *, ranges: Mapping[str, float], kind: EightBits
) -> None:
    """Apply a plan to both forms of a graph, which keep sharing their weights.

    Args:
        ranges: name of every activation in the plan -> largest magnitude to be represented.
    """
    weights: dict[str, _Rounded] = {}
    for model in graphs:
        graph = model.graph
        values = {_name(value): value for node in graph for value in node.outputs}
        for name, readers in plan.activations.items():
            restored = _round_activation(graph, values[name], ranges[name], kind)
            for reader in readers:
                _producer(values[reader.output]).replace_input_with(reader.place, restored)
        for exact, layers in _by_weights([_producer(values[name]) for name in plan.layers]).items():
            name, axis = _name(exact), OUTPUT_AXIS[layers[0].op_type]
            if name not in weights:
                weights[name] = _round_weights(exact, axis, kind)
            inputs = [_constant(graph, tensor) for tensor in weights[name]]
            restore = _node("DequantizeLinear", inputs, f"{name}.rounded", FLOAT, axis=axis)
            graph.insert_before(graph[0], restore)
            for layer in layers:
                layer.replace_input_with(1, restore.outputs[0])
        passes.RemoveUnusedNodesPass()(model)


def _read_graphs(bundle: Bundle) -> Graphs:
    """Both forms of a bundle's graph, with the weights they share as the same objects."""
    plugin, standard = (ir.load(bundle.graph(form)) for form in (PLUGIN_FORM, STANDARD_FORM))
    graphs = Graphs(plugin, standard)
    kept: dict[tuple[int | None, int | None], ir.ExternalTensor] = {}
    for model in graphs:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                place = value.const_value.offset, value.const_value.length
                value.const_value = kept.setdefault(place, value.const_value)
    return graphs


class _Rounded(NamedTuple):
    values: ir.TensorProtocol
    scale: ir.TensorProtocol  # (output channels,) in int8, () in fp8; float32


def _layers_before_values(graph: ir.Graph) -> list[ir.Node]:
    """The layers that a `value` of MSDeformAttn depends on, in the order of the graph."""
    found: set[ir.Node] = set()
    pending = [node.inputs[VALUE] for node in graph if node.op_type == OPERATOR]
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            pending += node.inputs
    return [node for node in graph if node in found and _is_wide_layer(node)]


def _is_wide_layer(node: ir.Node) -> bool:
    weights = node.inputs[1] if node.op_type in OUTPUT_AXIS else None
    if weights is None or weights.const_value is None:
        return False
    num_channels: int = weights.const_value.numpy().shape[1 - OUTPUT_AXIS[node.op_type]]
    return num_channels >= MIN_CHANNELS


def _summand(node: ir.Node, convolutions: Sequence[ir.Node]) -> int | None:
    """Which input of a node is added to the output of a convolution; None if none is.

    If both come from convolutions, it is the output of the first.
    """
    producers = [None if value is None else value.producer() for value in node.inputs]
    added_to = [layer for layer in convolutions if layer in producers]
    if node.op_type != "Add" or not added_to or None in producers:
        return None
    return 1 - producers.index(added_to[-1])


def _by_weights(layers: Sequence[ir.Node]) -> dict[ir.Value, list[ir.Node]]:
    """Layers grouped by their weights, which are then stored only once."""
    groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for layer in layers:
        weights = layer.inputs[1]
        assert weights is not None
        groups[weights].append(layer)
    return groups


def _round_activation(
    graph: ir.Graph, exact: ir.Value, largest: float, kind: EightBits
) -> ir.Value:
    """The activation after rounding to 8 bits; one that is always zero stays zero."""
    name = _name(exact)
    scale = _scale(np.array(largest), kind.largest, kind)
    step = _constant(graph, ir.tensor(scale, name=f"{name}.scale"))
    nothing = np.array(0, kind.dtype.numpy())
    zero = _constant(graph, ir.tensor(nothing, dtype=kind.dtype, name=f"{name}.zero"))
    round_ = _node("QuantizeLinear", [exact, step, zero], f"{name}.{kind.name}", kind.dtype)
    inputs = [round_.outputs[0], step, zero]
    restore = _node("DequantizeLinear", inputs, f"{name}.rounded", FLOAT)
    graph.insert_after(_producer(exact), [round_, restore])
    return restore.outputs[0]


def _round_weights(weights: ir.Value, axis: int, kind: EightBits) -> _Rounded:
    assert weights.const_value is not None
    exact = weights.const_value.numpy()
    if kind is INT8:
        others = tuple(other for other in range(exact.ndim) if other != axis)
        scale = _scale(np.abs(exact).max(axis=others, keepdims=True), kind.largest_weight, kind)
        values, scale = np.rint(exact / scale), scale.ravel()
    else:
        scale = _scale(np.abs(exact).max(), kind.largest_weight, kind)
        values = exact / scale
    return _Rounded(
        ir.tensor(
            values.astype(kind.dtype.numpy()), dtype=kind.dtype, name=f"{weights.name}.{kind.name}"
        ),
        ir.tensor(scale, name=f"{weights.name}.scale"),
    )


def _scale(
    largest: npt.NDArray[np.floating], number: float, kind: EightBits
) -> npt.NDArray[np.float32]:
    """What one of the type stands for, so that `number` stands for the largest magnitudes."""
    scale = np.where(largest > 0, largest, number) / number
    if kind is INT8:
        return np.asarray(scale, np.float32)
    return np.asarray(np.maximum(np.exp2(np.ceil(np.log2(scale))), SMALLEST_SCALE), np.float32)


def _node(
    op_type: str, inputs: Sequence[ir.Value], output: str, dtype: ir.DataType, **attributes: int
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes=attributes)
    node.outputs[0].name, node.outputs[0].type = output, ir.TensorType(dtype)
    return node


def _constant(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.val(tensor.name, const_value=tensor)
    graph.register_initializer(value)
    return value


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name
