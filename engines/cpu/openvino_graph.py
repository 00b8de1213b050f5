"""Changes a graph before OpenVINO compiles it, to make it faster with the same meaning."""

from typing import NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from openvino.utils.node_factory import NodeFactory

from bundle.layout import OPERATOR
from plugins import library


class Values(NamedTuple):
    """The linear layer that the values of a call come from; its output is zeroed on padding."""

    source: ov.Output  # (B, S, C)
    weights: ov.Output  # (C, M * D)
    bias: ov.Output  # (M * D,)
    padding_mask: ov.Output  # (B, S, 1), True on padding


class Memory(NamedTuple):
    """What the rewritten calls sample: the source and a constant 1, both zero on padding."""

    content: ov.Node  # (B, S, 1, C)
    validity: ov.Node  # (B, S, 1, 1)


def prepare_graph(model: ov.Model, hint: str) -> None:
    """Replace parts with faster equivalents, and set the type of the native op's values.

    In bf16, scores, boxes and the logits that rank proposals are float32 from the sums of the last
    layer on. The native op keeps what its reference points are computed from since then.

    Args:
        model: changed in place.
        hint: the precision it will be compiled for, "f32" or "bf16".
    """
    _sample_before_projecting(model)
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == OPERATOR:
            node.set_attribute("value_storage", hint)
        elif kind == "MatMul" and hint == "f32" and _is_constant(node.input_value(1)):
            _follow_with_nothing(node)
    if hint == "bf16":
        for layer in _last_layers(model):
            _follow_with_nothing(layer)
    model.validate_nodes_and_infer_types()


def _sample_before_projecting(model: ov.Model) -> None:
    """Let the calls of the decoder sample first, and project the samples into values afterwards.

    A weighted sum of W x + b is W times the weighted sum of x, plus b times the sum of the weights
    that are neither on padding nor outside. In the decoder that means less to project: per layer,
    2,400 samples (one per query and head) instead of the 17,821 tokens of an 800x1066 image.
    docs/decisions/0007-the-decoder-samples-before-it-projects.md says what it saves.
    """
    memories: dict[str, Memory] = {}  # by the name of the source, which all layers share
    for call in model.get_ordered_ops():
        values = _values_of(call) if call.get_type_name() == OPERATOR else None
        if values is None or call.get_input_partial_shape(4)[1].is_dynamic:
            continue  # in the encoder, there are as many queries as tokens
        name = values.source.get_node().get_friendly_name()
        if name not in memories:
            memories[name] = _memory_of(values)
        attended = _attend(call, values, memories[name])
        for reader in call.output(0).get_target_inputs():
            reader.replace_source_output(attended.output(0))


def _values_of(call: ov.Node) -> Values | None:
    """The layer that a call's values come from; None if they are not made as in our graphs."""
    passed, node = {}, call.input_value(0).get_node()
    for kind, place in (("Reshape", 0), ("Select", 2), ("Add", 0), ("MatMul", 0)):
        if node.get_type_name() != kind:
            return None
        passed[kind], node = node, node.input_value(place).get_node()
    layer = passed["MatMul"]
    bias, mask = passed["Add"].input_value(1), passed["Select"].input_value(0)
    return Values(layer.input_value(0), layer.input_value(1), bias, mask)


def _memory_of(values: Values) -> Memory:
    zero, one = (ops.constant(np.float32(number)) for number in (0, 1))
    head_axis = ops.constant([2])
    return Memory(
        ops.unsqueeze(ops.select(values.padding_mask, zero, values.source), head_axis),
        ops.unsqueeze(ops.select(values.padding_mask, zero, one), head_axis),
    )


def _attend(call: ov.Node, values: Values, memory: Memory) -> ov.Node:
    """The output of a call, (B, Q, M * D), with values projected after sampling."""
    _, shapes, reference, offsets, logits = call.input_values()
    heads, levels, points = (logits.get_partial_shape()[axis].get_length() for axis in (2, 3, 4))
    reference_dim = reference.get_partial_shape()[3].get_length()
    channels = values.source.get_partial_shape()[2].get_length()
    # Every head becomes a separate query.
    reference = ops.broadcast(
        ops.unsqueeze(reference, ops.constant([2])),
        ops.constant([1, 1, heads, 1, 1]),
        broadcast_spec="BIDIRECTIONAL",
    )
    inputs = (
        shapes,
        _reshape(reference, 0, -1, levels, reference_dim),  # (B, Q * M, L, 2 or 4)
        _reshape(offsets, 0, -1, 1, levels, points, 2),  # (B, Q * M, 1, L, P, 2)
        _reshape(logits, 0, -1, 1, levels, points),  # (B, Q * M, 1, L, P)
    )
    factory = NodeFactory("opset13")
    factory.add_extension(str(library.find(library.openvino_extension())))
    samples, shares = (
        _swap_heads(_reshape(factory.create(OPERATOR, [sampled, *inputs]), 0, -1, heads, size))
        for sampled, size in ((memory.content, channels), (memory.validity, 1))
    )  # (B, M, Q, C) and (B, M, Q, 1)
    weights = ops.transpose(_reshape(values.weights, 0, heads, -1), ops.constant([1, 0, 2]))
    bias = _reshape(values.bias, heads, 1, -1)
    attended = ops.add(ops.matmul(samples, weights, False, False), ops.multiply(shares, bias))
    return _reshape(_swap_heads(attended), 0, 0, -1)


def _reshape(value: ov.Node | ov.Output, *shape: int) -> ov.Node:
    """Reshape; 0 keeps the size of that axis."""
    return ops.reshape(value, ops.constant(np.array(shape)), special_zero=True)


def _swap_heads(value: ov.Node) -> ov.Node:
    """(B, Q, M, D) to (B, M, Q, D), or back."""
    return ops.transpose(value, ops.constant([0, 2, 1, 3]))


def _is_constant(value: ov.Output) -> bool:
    node = value.get_node()
    if node.get_type_name() == "Transpose":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _last_layers(model: ov.Model) -> list[ov.Node]:
    """The linear layers that outputs and reference points are computed from last."""
    pending = [result.input_value(0) for result in model.get_results()]
    pending += [node.input_value(2) for node in model.get_ops() if node.get_type_name() == OPERATOR]
    seen: set[str] = set()
    layers = []
    while pending:
        node = pending.pop().get_node()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() != "MatMul":
            pending += node.input_values()
        elif _is_constant(node.input_value(1)):
            layers.append(node)
    return layers


def _follow_with_nothing(matmul: ov.Node) -> None:
    """Put a PRelu of slope 1, which changes no number, after a linear layer without activation.

    The CPU plugin passes a float32 layer to a slower library if nothing is fused after it: for
    17,821 x 256 x 256, 26.2 ms instead of 23.7. With the PRelu, a full-size base at 800x1066 takes
    3.26 CPU-s instead of 3.40, a two_stage at 480x640 1.20 instead of 1.23. In bf16, the sums of
    the layer are not rounded if what is fused after it is float32.
    """
    output = matmul.output(0)
    users = list(output.get_target_inputs())
    if len(users) == 1 and users[0].get_node().get_type_name() == "Add":
        output = users[0].get_node().output(0)
        users = list(output.get_target_inputs())
    if len(users) == 1 and users[0].get_node().get_type_name() == "Relu":
        return
    same = ops.prelu(output, ops.constant(np.ones(1, np.float32)))
    for user in users:
        user.replace_source_output(same.output(0))
