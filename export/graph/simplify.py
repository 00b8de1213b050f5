"""Simplifies a traced graph: folds constants, and fuses or drops nodes.

`onnxscript.optimizer.optimize` does the same with every rule it has, and it tries each of them at
every node: a third of the CPU time of exporting a full-size model. These are the rules that find
something in our graphs.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter.rules import common as rules

ROUNDS = 2  # what one round fuses may be folded by the next

RULES: Sequence[RewriteRule] = (
    *rules.mul_by_1_rule.commute(),
    *rules.add_0_rule.commute(),
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_gemm_rule,
)


def simplify(model: ir.Model) -> None:
    """Simplify the graph in place; its constants become initialisers."""
    for _ in range(ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, RULES)
    ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
    )(model)
