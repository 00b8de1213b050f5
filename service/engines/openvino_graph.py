"""What is changed in a graph before OpenVINO compiles it: nothing in what it means."""

import numpy as np
import openvino as ov
import openvino.opset13 as ops


def prepare_graph(model: ov.Model, hint: str) -> None:
    """Say how the native op keeps its values, and choose the faster kernel of linear layers.

    Args:
        model: changed in place.
        hint: the precision that it is going to be compiled for, "f32" or "bf16".
    """
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "MSDeformAttn":
            node.set_attribute("value_storage", hint)
        elif kind == "MatMul" and hint == "f32" and _is_constant(node.input_value(1)):
            _follow_with_nothing(node)
    model.validate_nodes_and_infer_types()


def _is_constant(value: ov.Output) -> bool:
    node = value.get_node()
    if node.get_type_name() == "Transpose":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _follow_with_nothing(matmul: ov.Node) -> None:
    """Put a PRelu of slope 1, which changes no number, behind a linear layer without activation.

    The CPU plugin hands a float32 layer with nothing fused behind it to another library than one
    with: for 17,821 x 256 x 256 that takes 26.2 ms against 23.7. A full-size base at 800x1066 takes
    3.26 CPU-s with it and 3.40 without, a two_stage at 480x640 1.20 and 1.23.
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
