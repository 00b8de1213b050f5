"""What a graph is changed into before it is compiled gives what it gave."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.cpu.openvino_graph import prepare_graph
from tests.plugins.openvino_core import core_with_operator

HEADS, LEVELS, POINTS, CHANNELS, QUERIES = 2, 2, 3, 8, 5
SHAPES = np.array([(4, 6), (2, 3)], np.int32)
TOKENS = int(SHAPES.prod(axis=1).sum())

# What all layers read.
INPUTS = ("memory", "padding_mask", "points", "offsets_of_all", "logits_of_all")
CONSTANTS = {
    "zero": np.float32(0),
    "split": np.array([0, -1, HEADS, CHANNELS // HEADS]),
    "shapes": SHAPES,
}
SHARED = {*INPUTS, *CONSTANTS}

Tensors = dict[str, np.ndarray]
Outputs = tuple[list[np.ndarray], list[str]]
Layer = tuple[list[onnx.NodeProto], Tensors]


@pytest.fixture(scope="module")
def core() -> ov.Core:
    return core_with_operator()


@pytest.fixture
def run(core: ov.Core) -> Callable[..., Outputs]:
    """Run a graph as it is or prepared; its outputs, then the kinds of the nodes it was made of."""

    def run(graph: bytes, tensors: Tensors, *, prepared: bool) -> Outputs:
        model = core.read_model(graph)
        if prepared:
            prepare_graph(model, "f32")
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = compiled.create_infer_request().infer(tensors)
        return [*outputs.values()], [node.get_type_name() for node in model.get_ordered_ops()]

    return run


def layer(number: int, *, quantised: bool = False) -> Layer:
    """Nodes of one call of the decoder, as they are exported, and their constants."""
    rng = np.random.default_rng(number)
    weights = rng.integers(-127, 128, (CHANNELS, CHANNELS)).astype(np.int8)
    constants = {
        "weights": weights if quantised else weights.astype(np.float32) / 64,
        "scale": np.full(CHANNELS, 1 / 64, np.float32),
        "bias": rng.normal(size=CHANNELS).astype(np.float32),
        "offsets": rng.normal(size=(HEADS, LEVELS, POINTS, 2)).astype(np.float32),
        "logits": rng.normal(size=(HEADS, LEVELS, POINTS)).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["weights", "scale"], ["used"], axis=1)
        if quantised
        else helper.make_node("Identity", ["weights"], ["used"]),
        helper.make_node("MatMul", ["memory", "used"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["linear"]),
        helper.make_node("Where", ["padding_mask", "zero", "linear"], ["masked"]),
        helper.make_node("Reshape", ["masked", "split"], ["value"]),
        helper.make_node("Add", ["offsets_of_all", "offsets"], ["own_offsets"]),
        helper.make_node("Add", ["logits_of_all", "logits"], ["own_logits"]),
        helper.make_node(
            "MSDeformAttn",
            ["value", "shapes", "points", "own_offsets", "own_logits"],
            ["output"],
            domain="detr",
        ),
    ]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [name if name in SHARED else f"{name}{number}" for name in names]
    return nodes, {f"{name}{number}": constant for name, constant in constants.items()}


def decoder(*layers: Layer, reference_dim: int = 2, queries: int | str = QUERIES) -> bytes:
    """A graph of several layers side by side, for any batch."""
    shapes = [
        (TOKENS, CHANNELS),
        (TOKENS, 1),
        (queries, LEVELS, reference_dim),
        (queries, HEADS, LEVELS, POINTS, 2),
        (queries, HEADS, LEVELS, POINTS),
    ]
    kinds = (TensorProto.FLOAT, TensorProto.BOOL, *[TensorProto.FLOAT] * 3)
    constants = CONSTANTS.copy()
    for _, own in layers:
        constants |= own
    graph = helper.make_graph(
        [node for nodes, _ in layers for node in nodes],
        "decoder",
        [
            helper.make_tensor_value_info(name, kind, ["B", *shape])
            for name, kind, shape in zip(INPUTS, kinds, shapes, strict=True)
        ],
        [
            helper.make_tensor_value_info(
                nodes[-1].output[0], TensorProto.FLOAT, ["B", queries, CHANNELS]
            )
            for nodes, _ in layers
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("detr", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def tensors(batch: int, reference_dim: int = 2) -> Tensors:
    """Inputs with padding, and with points beyond the border."""
    rng = np.random.default_rng(batch)
    mask = np.zeros((batch, TOKENS, 1), np.bool_)
    mask[-1, 10:20] = True
    samples = (batch, QUERIES, HEADS, LEVELS, POINTS)
    return {
        "memory": rng.normal(size=(batch, TOKENS, CHANNELS)).astype(np.float32),
        "padding_mask": mask,
        "points": rng.uniform(0, 1, (batch, QUERIES, LEVELS, reference_dim)).astype(np.float32),
        "offsets_of_all": rng.normal(size=(*samples, 2)).astype(np.float32),
        "logits_of_all": rng.normal(size=samples).astype(np.float32),
    }


@pytest.mark.parametrize("quantised", [False, True], ids=["float", "int8 weights"])
@pytest.mark.parametrize("reference_dim", [2, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_sampling_first_gives_what_projecting_first_gave(
    run: Callable[..., tuple], batch: int, reference_dim: int, quantised: bool
) -> None:
    layers = [layer(number, quantised=quantised) for number in range(3)]
    graph, inputs = decoder(*layers, reference_dim=reference_dim), tensors(batch, reference_dim)

    expected, before = run(graph, inputs, prepared=False)
    found, after = run(graph, inputs, prepared=True)

    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert np.abs(expected).max() > 1
    # All layers sample one memory, each twice: for its content and for how much of it is there.
    assert (before.count("MSDeformAttn"), after.count("MSDeformAttn")) == (3, 6)
    assert (before.count("Select"), after.count("Select")) == (3, 2)


@pytest.mark.parametrize("reference_dim", [2, 4])
def test_what_lies_outside_the_map_weighs_nothing_where_memory_is_infinite(
    run: Callable[..., tuple], reference_dim: int
) -> None:
    graph, inputs = decoder(layer(0), reference_dim=reference_dim), tensors(1, reference_dim)
    inputs["points"][..., :2] = 9.0
    inputs["memory"][:, -1] = np.inf  # the border of the coarser level

    expected, _ = run(graph, inputs, prepared=False)
    found, after = run(graph, inputs, prepared=True)

    assert after.count("MSDeformAttn") == 2
    np.testing.assert_array_equal(expected, np.zeros_like(expected))
    np.testing.assert_array_equal(found, expected)


def replaced(part: Layer, kind: str, nodes: Sequence[onnx.NodeProto]) -> Layer:
    """A layer with other nodes in the place of the one of this kind."""
    index = [node.op_type for node in part[0]].index(kind)
    return [*part[0][:index], *nodes, *part[0][index + 1 :]], part[1]


def test_a_call_whose_values_are_made_otherwise_is_left_alone(run: Callable[..., tuple]) -> None:
    relu = helper.make_node("Relu", ["product0"], ["linear0"])
    graph, inputs = decoder(replaced(layer(0), "Add", [relu])), tensors(2)

    expected, before = run(graph, inputs, prepared=False)
    found, after = run(graph, inputs, prepared=True)

    np.testing.assert_array_equal(found, expected)
    assert after.count("MSDeformAttn") == before.count("MSDeformAttn") == 1


def test_a_call_whose_queries_are_as_many_as_tokens_is_left_alone(
    run: Callable[..., tuple],
) -> None:
    _, after = run(decoder(layer(0), queries="Q"), tensors(1), prepared=True)

    assert after.count("MSDeformAttn") == 1


def linear_layers(last: str) -> bytes:
    """A linear layer with a bias and one without; `last` is the kind of node behind them."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["images", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["linear"]),
            helper.make_node("MatMul", ["linear", "weights"], ["again"]),
            helper.make_node(last, ["again"], ["output"]),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", 4])],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32)[::-1] * 3, "weights"),
            numpy_helper.from_array(np.array([1, -2, 3, -4], np.float32), "bias"),
        ],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


@pytest.mark.parametrize(("last", "num_followed"), [("Neg", 2), ("Relu", 1)])
def test_a_linear_layer_without_an_activation_gets_one_that_changes_nothing(
    run: Callable[..., tuple], last: str, num_followed: int
) -> None:
    graph, inputs = (
        linear_layers(last),
        {"images": np.array([[1, -2, 3, -4], [0, 0, 5, -6]], np.float32)},
    )

    expected, before = run(graph, inputs, prepared=False)
    found, after = run(graph, inputs, prepared=True)

    np.testing.assert_array_equal(found, expected)
    assert (before.count("PRelu"), after.count("PRelu")) == (0, num_followed)


def test_in_half_precision_only_the_last_layer_is_followed_by_one(core: ov.Core) -> None:
    model = core.read_model(linear_layers("Neg"))

    prepare_graph(model, "bf16")

    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    layers = [kind for kind in kinds if kind in ("MatMul", "Add", "PRelu")]
    assert layers == ["MatMul", "Add", "MatMul", "PRelu"]


@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_every_call_keeps_values_as_the_hint_says(core: ov.Core, hint: str) -> None:
    model = core.read_model(decoder(layer(0)))

    prepare_graph(model, hint)

    calls = [node for node in model.get_ops() if node.get_type_name() == "MSDeformAttn"]
    assert [call.get_attributes()["value_storage"] for call in calls] == [hint, hint]
