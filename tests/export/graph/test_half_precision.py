import shutil
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from bundle.manifest import Bundle
from export.graph.half_precision import FLOAT, HALVES, add_half_graph, write_half

DEMO = Path(__file__).parents[3] / "bundles" / "demo"
FORMS = {"plugin": "model.plugin.onnx", "standard": "model.onnx"}


def half_graph(form, precision="fp16", directory=DEMO):
    model = ir.load(directory / FORMS[form])
    write_half(model, precision)
    return model


def nodes_of(model, *kinds):
    return [node for node in model.graph if node.op_type in kinds]


def float_inputs(node):
    types = {FLOAT, *HALVES.values()}
    return [value.dtype for value in node.inputs if value is not None and value.dtype in types]


def is_conversion(node):
    ends = {node.inputs[0].dtype, node.outputs[0].dtype}
    return node.op_type == "Cast" and ends in ({FLOAT, half} for half in HALVES.values())


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_valid_and_its_types_agree_everywhere(form, precision, tmp_path):
    model = half_graph(form, precision)

    ir.save(model, tmp_path / "half.onnx", external_data="weights.bin")

    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    mixed = [node for node in model.graph if len(set(float_inputs(node))) > 1]
    assert {node.op_type for node in mixed} == ({"MSDeformAttn"} if form == "plugin" else set())


@pytest.mark.parametrize("form", FORMS)
def test_inputs_and_outputs_keep_their_types(form):
    before, after = ir.load(DEMO / FORMS[form]).graph, half_graph(form).graph

    for side in ("inputs", "outputs"):
        types = [[value.dtype for value in getattr(graph, side)] for graph in (before, after)]
        assert types[0] == types[1]


def test_the_op_gets_half_values_and_float32_reference_points():
    model = half_graph("plugin")

    half = ir.DataType.FLOAT16
    for node in nodes_of(model, "MSDeformAttn"):
        assert float_inputs(node) == [half, FLOAT, half, half]
        assert node.outputs[0].dtype is half


def test_both_forms_compute_the_same_layers_in_half():
    kinds = ("Conv", "MatMul", "LayerNormalization")
    in_half, in_float32 = (
        [
            Counter(node.op_type for node in nodes_of(half_graph(form), *kinds)
                    if (node.outputs[0].dtype is FLOAT) is is_exact)
            for form in FORMS
        ]
        for is_exact in (False, True)
    )  # fmt: skip

    assert in_half[0] == in_half[1]
    assert in_half[0]["Conv"] == 20
    # The last layers of: class and box head of the encoder, three box heads, the class head.
    assert in_float32 == [Counter(MatMul=6)] * 2


@pytest.mark.parametrize(
    ("rule", "kinds"),
    {
        "angles": ("Sin", "Cos"),
        "ranks": ("TopK",),
        "locations": ("Sigmoid", "Log"),
        "statistics": ("ReduceSum", "Sqrt", "Reciprocal"),
        "sampling": ("GridSample",),
        "geometry": ("Clip",),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_rule_names_stays_float32(rule, kinds):
    model = half_graph("standard")

    nodes = nodes_of(model, *kinds)

    assert nodes, rule
    assert {dtype for node in nodes for dtype in float_inputs(node)} == {FLOAT}
    assert {node.outputs[0].dtype for node in nodes}.isdisjoint(HALVES.values())


def test_pixels_are_normalised_before_they_are_rounded():
    model = half_graph("plugin")
    (first,) = (node for node in nodes_of(model, "Conv") if "backbone.conv1" in node.inputs[1].name)

    cast = first.inputs[0].producer()

    assert is_conversion(cast)
    assert cast.inputs[0].producer().op_type == "Where"  # zero on padding
    assert cast.inputs[0].dtype is FLOAT


@pytest.mark.parametrize("form", FORMS)
def test_no_value_is_cast_twice_or_back(form):
    model = half_graph(form)

    casts = [node for node in model.graph if is_conversion(node)]
    targets = Counter((node.inputs[0], node.outputs[0].dtype) for node in casts)
    assert max(targets.values()) == 1
    assert not [node for node in casts if any(map(is_conversion, node.predecessors()))]


def test_there_are_few_casts():
    model = half_graph("plugin")

    users = Counter(node.outputs[0].consumers()[0].op_type for node in model.graph
                    if is_conversion(node))  # fmt: skip

    # Three levels of group norm: the map there and back, and the deviation back; 6 last layers of
    # heads; masks of four stages; the pixels, and position encodings of tokens and of proposals.
    assert sum(users.values()) <= 23, users


def test_weights_take_half_the_space(tmp_path):
    ir.save(half_graph("plugin"), tmp_path / "half.onnx", external_data="weights.bin")

    size = (tmp_path / "weights.bin").stat().st_size

    assert size < 0.51 * (DEMO / "weights.bin").stat().st_size


def test_a_weight_that_float16_cannot_hold_is_refused_by_name():
    model = ir.load(DEMO / FORMS["plugin"])
    weight = model.graph.initializers["detector.backbone.conv1.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1e6, name=weight.name)

    with pytest.raises(ValueError, match=r"detector.backbone.conv1.weight reaches .*; export with"):
        write_half(model, "fp16")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_graph_has_the_inputs_and_outputs_of_the_others(tmp_path, precision):
    directory = shutil.copytree(DEMO, tmp_path / "demo")

    half_bundle = add_half_graph(Bundle.load(directory), precision)

    plugin, half = (
        onnx.load(half_bundle.graph(form), load_external_data=False).graph
        for form in ("plugin", "tensorrt")
    )

    assert list(half.input) == list(plugin.input)
    assert list(half.output) == list(plugin.output)
    assert [node.op_type for node in half.node].count("MSDeformAttn") == 4
