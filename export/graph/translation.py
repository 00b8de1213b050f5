"""Translates PyTorch operators to ONNX: our own, and those that `torch.onnx` would decompose.

To decompose operators, the exporter traces the whole model once more, which takes as long as the
first time. The few such operators in our models are translated here instead. If one is missing, the
export fails and names it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import onnx
import onnx_ir as ir
import torch
from onnxscript import opset20
from onnxscript.values import Opset
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _fx_passes

import model.network.ops.registration  # noqa: F401  # registers the operator
from bundle.layout import OPERATOR, OPERATOR_DOMAIN

OPSET = 20

_op: Any = opset20  # its annotations leave out the numbers it accepts
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_Formal = onnx.defs.OpSchema.FormalParameter
_SCHEMA = onnx.defs.OpSchema(
    OPERATOR,
    OPERATOR_DOMAIN,
    1,
    doc="Multi-scale deformable attention, fused: softmax, sampling locations, weighted sum.",
    inputs=[
        _Formal("value", "T"),  # (B, S, M, D)
        _Formal("spatial_shapes", "tensor(int32)"),  # (L, 2), height and width
        _Formal("reference_points", "tensor(float)"),  # (B, Q, L, 2 or 4)
        _Formal("sampling_offsets", "T"),  # (B, Q, M, L, P, 2)
        _Formal("attention_logits", "T"),  # (B, Q, M, L, P)
    ],
    outputs=[_Formal("output", "T")],  # (B, Q, M * D)
    type_constraints=[("T", _FLOATS, "")],
)
onnx.defs.register_schema(_SCHEMA)


def _attention_node(
    value: Any, spatial_shapes: Any, reference_points: Any, sampling_offsets: Any, logits: Any
) -> Any:
    """The node for one call of `detr::ms_deform_attn`; the shapes come as 2 L scalars."""
    sides = _op.Concat(*[_op.Reshape(side, [1]) for side in spatial_shapes], axis=0)
    shapes = _op.Reshape(_op.Cast(sides, to=ir.DataType.INT32), [-1, 2])
    opset = Opset(OPERATOR_DOMAIN, _SCHEMA.since_version)
    return getattr(opset, OPERATOR)(value, shapes, reference_points, sampling_offsets, logits)


def _same(x: Any, *_: Any) -> Any:
    return _op.Identity(x)


def _cast(x: Any, dtype: int, *_: Any) -> Any:
    return _op.Cast(x, to=dtype)


def _batch_norm(x: Any, *arguments: Any) -> Any:
    scale, bias, mean, var, training, _, epsilon, _ = arguments
    assert not training
    return _op.BatchNormalization(x, scale, bias, mean, var, epsilon=epsilon)


def _and(x: Any, y: Any) -> Any:
    return _op.And(x, _op.Constant(value=ir.tensor(y)) if isinstance(y, bool) else y)


def _item(x: Any) -> Any:
    """The integer in a tensor without axes."""
    return _op.Cast(x, to=ir.DataType.INT64)


def _divide(x: Any, y: Any) -> Any:
    """The quotient by a tensor of the same type, or by a size, which is an integer."""
    return _op.Div(x, _op.CastLike(y, x))


def _subtract_from(x: Any, y: float) -> Any:
    return _op.Sub(_op.CastLike(y, x), x)


def _square(x: Any) -> Any:
    return _op.Mul(x, x)


_aten = torch.ops.aten
TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.detr.ms_deform_attn.default: _attention_node,
    _aten.lift_fresh_copy.default: _same,
    _aten.detach_.default: _same,
    _aten.to.dtype: _cast,
    _aten.batch_norm.default: _batch_norm,
    _aten.__and__.Tensor: _and,
    _aten.__and__.Scalar: _and,
    _aten.item.default: _item,
    _aten.div.Tensor: _divide,
    _aten.rsub.Scalar: _subtract_from,
    _aten.square.default: _square,
}


@contextmanager
def traced_once() -> Iterator[None]:
    """Skip the second trace, which would decompose operators, and the third, which adds casts."""
    with (
        patch.object(ExportedProgram, "run_decompositions", _without_dead_code),
        patch.object(_fx_passes, "insert_type_promotion_nodes", lambda _: None),
    ):
        yield


def _without_dead_code(program: ExportedProgram, _: Any) -> ExportedProgram:
    program.graph.eliminate_dead_code()
    return program
