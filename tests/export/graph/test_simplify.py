"""Graphs that a trace gives, before and after they are simplified."""

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from export.graph.simplify import simplify

HEADER = '<ir_version: 10, opset_import: ["" : 20]> g (float[1,2,4,4] x) => (float[a,b,c,d] y)'
CONSTANTS = """
    one = Constant <value = float {1.0}> ()
    zero = Constant <value = float {0.0}> ()
    weight = Constant <value = float[2,2,1,1] {1.0, 2.0, -1.0, 0.5}> ()
    scale = Constant <value = float[2] {2.0, 3.0}> ()
    shift = Constant <value = float[2] {0.5, -0.5}> ()
    mean = Constant <value = float[2] {0.1, 0.2}> ()
    variance = Constant <value = float[2] {1.5, 2.5}> ()
    first = Constant <value = int64[1] {0}> ()
    second = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {9223372036854775807}> ()
    rows = Constant <value = int64[1] {2}> ()
    columns = Constant <value = int64[1] {3}> ()
    shape = Constant <value = int64[4] {1, 2, 2, 8}> ()
    flat = Constant <value = int64[2] {1, -1}> ()
"""


def model_of(body: str) -> ir.Model:
    """The graph with its constants as initialisers, as a trace has its weights."""
    model = ir.from_proto(onnx.parser.parse_model(f"{HEADER} {{ {CONSTANTS} {body} }}"))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def run(model: ir.Model, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    (output,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    return np.asarray(output)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (
            "z = Conv(x, weight) y = BatchNormalization(z, scale, shift, mean, variance)",
            ["Conv"],
        ),
        ("z = Mul(x, one) w = Add(zero, z) y = Relu(w)", ["Relu"]),
        ("z = Slice(x, first, last, rows) y = Slice(z, second, last, rows)", ["Slice", "Slice"]),
        ("z = Slice(x, first, last, rows, second) y = Relu(z)", ["Relu"]),
        ("z = Reshape(x, flat) y = Reshape(z, shape)", ["Reshape"]),
        (
            "z = Transpose <perm = [0, 2, 3, 1]> (x) y = Transpose <perm = [0, 2, 1, 3]> (z)",
            ["Transpose"],
        ),
        ("z = Unsqueeze(x, first) w = Unsqueeze(z, first) y = Relu(w)", ["Unsqueeze", "Relu"]),
        ("z = Add(one, one) y = Mul(x, z)", ["Mul"]),
    ],
)
def test_a_simpler_graph_computes_the_same(body, operators):
    model = model_of(body)
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    expected = run(model, x)

    simplify(model)

    assert [node.op_type for node in model.graph] == operators
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)
