import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bundle.manifest import TensorSpec
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch
from export.graph.trace import Sizes, reference_graph
from export.judge.verify import BOX_TOLERANCE, SCORE_TOLERANCE, difference
from model.config import Variant
from model.network.inference import torch_predictor
from model.network.ops.reference import ms_deform_attn_reference
from tests.ops.cases import CASES

pytestmark = pytest.mark.slow

VARIANTS = list(Variant)
# (height, width) of the images of a batch; the graphs are traced with two images of one size.
BATCHES = {
    "one large": [(160, 224)],
    "odd": [(97, 131)],
    "three of different sizes": [(64, 128), (128, 70), (33, 65)],
    "five": [(66, 64)] * 5,
    "wide": [(64, 321)],
}
# Of two kinds of reference points; all other sizes are the same, since each takes an export.
EXPORTED_CASES = ("infinite, points", "infinite, boxes")


class MSDeformAttn(OpRun):
    """The node of the plugin form, as ONNX's own evaluator can run it."""

    op_domain = "detr"

    def _run(self, value, spatial_shapes, *inputs):
        tensors = [torch.from_numpy(x) for x in (value, *inputs)]
        levels = [(int(height), int(width)) for height, width in spatial_shapes]
        return (ms_deform_attn_reference(tensors[0], levels, *tensors[1:]).contiguous().numpy(),)


class GatherElements(OpRun):
    """ONNX's own evaluator takes at most 64 indices here."""

    def _run(self, data, indices, axis=0):
        return (np.take_along_axis(data, indices, axis),)


def random_batch(sizes, min_side=1):
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return pad_batch(images, min_side)


def run_onnxruntime(path, images, padding_mask):
    session = ort.InferenceSession(str(path))
    inputs = {"images": images, "padding_mask": padding_mask}
    return RawOutput(*session.run(list(RawOutput._fields), inputs))


def op_in_onnxruntime(graph, inputs):
    session = ort.InferenceSession(graph)
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def op_in_openvino(graph, inputs):
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(inputs)[0]


def load(exported, form, *, weights=False):
    path = exported.directory / exported.manifest.graphs[form]
    return onnx.load(str(path), load_external_data=weights)


def signature(value):
    """An input or output of a graph as the manifest describes it."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def places_of_weights(graph):
    """Offset and length in the file of weights, by the name of the tensor."""
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.graph.initializer
        if tensor.external_data
    }


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_gives_what_the_model_gives(exported, variant, sizes):
    small = exported(variant)
    batch = random_batch(sizes, small.manifest.preprocess.min_side)

    expected = torch_predictor(small.model)(*batch)
    found = run_onnxruntime(small.directory / "model.onnx", *batch)

    apart = difference(expected, found)
    assert apart.score_error < SCORE_TOLERANCE / 10
    assert apart.box_error < BOX_TOLERANCE
    assert np.ptp(found.boxes) > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_smallest_images_have_detections(exported, variant):
    small = exported(variant)
    batch = random_batch([(1, 1)], small.manifest.preprocess.min_side)

    expected = torch_predictor(small.model)(*batch)
    found = run_onnxruntime(small.directory / "model.onnx", *batch)

    assert difference(expected, found).box_error < BOX_TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plugin_graph_gives_what_the_model_gives(exported, variant):
    small = exported(variant)
    images, padding_mask = random_batch([(64, 70), (40, 96)])
    graph = load(small, "plugin", weights=True)
    evaluator = ReferenceEvaluator(graph, new_ops=[MSDeformAttn, GatherElements])

    expected = torch_predictor(small.model)(images, padding_mask)
    inputs = {"images": images, "padding_mask": padding_mask}
    found = evaluator.run(list(RawOutput._fields), inputs)

    apart = difference(expected, RawOutput(*found))
    assert apart.score_error < SCORE_TOLERANCE
    assert apart.box_error < BOX_TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_standard_graph_holds_standard_operators_only(exported, variant):
    graph = load(exported(variant), "standard")

    domains = {node.domain for node in graph.graph.node}
    kinds = [node.op_type for node in graph.graph.node]
    assert domains == {""}
    assert [opset.domain for opset in graph.opset_import] == [""]
    assert len(graph.functions) == 0
    assert kinds.count("GridSample") == 3 * 4  # a decoder and two encoder layers, four levels
    assert "BatchNormalization" not in kinds


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plugin_graph_holds_a_node_for_every_call_of_the_op(exported, variant):
    graph = load(exported(variant), "plugin")

    nodes = [node for node in graph.graph.node if node.domain == "detr"]
    assert [node.op_type for node in nodes] == ["MSDeformAttn"] * 3
    assert {(len(node.input), len(node.output), node.overload) for node in nodes} == {(5, 1, "")}
    assert "GridSample" not in [node.op_type for node in graph.graph.node]


@pytest.mark.parametrize("form", ["standard", "plugin"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_and_outputs_are_those_of_the_manifest(exported, variant, form):
    small = exported(variant)

    graph = load(small, form).graph

    assert [signature(value) for value in graph.input] == list(small.manifest.inputs)
    assert [signature(value) for value in graph.output] == list(small.manifest.outputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_graphs_read_the_same_weights_from_one_file(exported, variant):
    small = exported(variant)

    standard = places_of_weights(load(small, "standard"))
    plugin = places_of_weights(load(small, "plugin"))

    assert plugin == standard
    assert {place["location"] for place in standard.values()} == {"weights.bin"}
    lengths = {place["offset"]: int(place["length"]) for place in standard.values()}
    assert sum(lengths.values()) == (small.directory / "weights.bin").stat().st_size


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_on_the_disk_once(exported, variant):
    small = exported(variant)
    parameters = sum(p.nbytes for p in small.model.detector.state_dict().values())

    sizes = {file.name: file.stat().st_size for file in small.directory.iterdir() if file.is_file()}

    assert sizes["weights.bin"] < parameters
    assert sizes["model.onnx"] + sizes["model.plugin.onnx"] < 400_000


def test_the_number_of_proposals_is_a_constant_of_the_graph(exported):
    graph = load(exported(Variant.TWO_STAGE), "standard").graph

    constants = {tensor.name: tensor for tensor in graph.initializer}
    counts = [onnx.numpy_helper.to_array(constants[node.input[1]]).item()
              for node in graph.node if node.op_type == "TopK"]  # fmt: skip

    assert counts == [30, 15]


def test_proposals_are_ranked_by_one_logit_and_boxed_when_chosen(exported):
    small = exported(Variant.TWO_STAGE)
    head = small.model.detector.queries.class_head
    shapes = [sorted(tensor.dims) for tensor in load(small, "plugin").graph.initializer]

    # The decoder's last class head is in the graph whole; of the encoder's, the row that ranks.
    assert shapes.count(sorted(head.weight.shape)) == 1
    assert [1, head.in_features] in shapes


@pytest.mark.parametrize("form", ["standard", "plugin"])
def test_a_graph_says_nothing_of_the_machine_that_made_it(exported, form):
    graph = load(exported(Variant.BASE), form)

    assert graph.producer_name == "detr-serve"
    assert all(not node.doc_string and not node.metadata_props for node in graph.graph.node)
    assert b".py" not in graph.SerializeToString()


@pytest.mark.parametrize("case", [case for case in CASES if case.name in EXPORTED_CASES], ids=str)
def test_the_standard_form_of_the_op_gives_what_the_op_gives(case):
    value, shapes, *others = case.inputs()
    sizes = Sizes(case.heads, case.head_dim, case.reference_width, len(shapes), case.points)
    graph = ir.to_proto(ir.Model(reference_graph(sizes).clone(), ir_version=10)).SerializeToString()
    inputs = [value, torch.tensor(shapes, dtype=torch.int32), *others]

    outputs = [
        run(graph, [tensor.numpy() for tensor in inputs])
        for run in (op_in_onnxruntime, op_in_openvino)
    ]

    expected = ms_deform_attn_reference(value, shapes, *others).numpy()
    assert np.isfinite(expected).all()
    for output in outputs:
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)
