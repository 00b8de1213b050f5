"""A detector as ONNX graphs in two forms from one trace.

The plugin form has a node `MSDeformAttn` (domain `detr`) for every call of the op. The standard
form is the same graph, with each of these nodes replaced by an export of
`model/network/ops/reference.py`: standard operators only. Both share one file of weights.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from bundle.layout import (
    GRAPH_FILES,
    INPUTS,
    OPERATOR_DOMAIN,
    OUTPUTS,
    STANDARD_FORM,
    WEIGHTS_FILES,
)
from export.graph.simplify import simplify
from export.graph.translation import OPSET, TRANSLATIONS, traced_once
from model.network.inference import DetectionModel
from model.network.ops.reference import ms_deform_attn_reference

EXAMPLE_BATCH = 2
EXTERNAL_FROM_BYTES = 1024  # tensors of at least this size go into the file of weights


class Graphs(NamedTuple):
    """The two forms of one model; they share their weights."""

    plugin: ir.Model
    standard: ir.Model


def export_graphs(model: DetectionModel, *, min_side: int) -> Graphs:
    """Trace the model with free batch size, height and width, and make both forms.

    Args:
        model: in evaluation mode.
        min_side: smallest height and width that the graph must accept, in pixels.
    """
    plugin = _trace(model, min_side)
    sizes = [_sizes(node) for node in _attention_nodes(plugin)]
    with _quiet():
        simplify(plugin)
    standard = plugin.clone()
    _replace_attention(standard, sizes)
    for graph in (plugin, standard):
        _finish(graph)
    return Graphs(plugin, standard)


def write_graphs(graphs: Graphs, directory: Path) -> dict[str, str]:
    """Write both graphs and their shared weights; returns form -> file name.

    Raises:
        ValueError: a graph is not valid ONNX.
    """
    models = graphs._asdict()
    values = [value for model in models.values() for value in model.graph.initializers.values()]
    large = {
        id(value.const_value): value.const_value
        for value in values
        if value.const_value is not None and value.const_value.nbytes >= EXTERNAL_FROM_BYTES
    }
    external = ir.external_data.convert_tensors_to_external(
        list(large.values()), directory, WEIGHTS_FILES[STANDARD_FORM], alignment=4096
    )
    replacement = dict(zip(large, external, strict=True))
    for value in values:
        value.const_value = replacement.get(id(value.const_value), value.const_value)
    files = {form: GRAPH_FILES[form] for form in models}
    for form, file in files.items():
        ir.save(models[form], directory / file)
        try:
            onnx.checker.check_model(str(directory / file))
        except onnx.checker.ValidationError as error:
            raise ValueError(f"the {form} graph is not valid ONNX: {error}") from error
    return files


def _trace(model: DetectionModel, min_side: int) -> ir.Model:
    """The plugin form, not yet optimised."""
    # Height, width and their size on every level all differ, so the tracer cannot confuse any two.
    height, width = min_side + 96, min_side + 224
    images = torch.zeros(EXAMPLE_BATCH, height, width, 3, dtype=torch.uint8)
    padding_mask = torch.zeros(EXAMPLE_BATCH, height, width, dtype=torch.bool)
    free = {0: "batch", 1: "height", 2: "width"}
    same = dict.fromkeys(free, torch.export.Dim.DYNAMIC)  # named like the axes of the images
    return _export(
        model,
        (images, padding_mask),
        dynamic_shapes=(free, same),
        input_names=INPUTS,
        output_names=OUTPUTS,
    )


def _export(module: nn.Module, args: tuple[Tensor, ...], **options: Any) -> ir.Model:
    # Entries of the cache of fake tensors cost more than they save: nearly every size is another.
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with torch.no_grad(), _quiet(), traced_once(), uncached:
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            optimize=False,
            custom_translation_table=TRANSLATIONS,
            **options,
        )
    assert program is not None
    model: ir.Model = program.model
    return model


def _attention_nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.domain == OPERATOR_DOMAIN)


class _Reference(nn.Module):
    """The op with its level shapes as a tensor, like the node."""

    def forward(
        self,
        value: Tensor,
        spatial_shapes: Tensor,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        sides = spatial_shapes.flatten().tolist()
        for side in sides:
            torch._check(side >= 1)
        levels = list(zip(sides[::2], sides[1::2], strict=True))
        return ms_deform_attn_reference(
            value, levels, reference_points, sampling_offsets, attention_logits
        )


class Sizes(NamedTuple):
    """The sizes in an MSDeformAttn node's input shapes that are fixed."""

    num_heads: int
    head_dim: int
    reference_dim: int
    num_levels: int
    num_points: int


def _sizes(node: ir.Node) -> Sizes:
    value, _, points, offsets, _ = (None if x is None else x.shape for x in node.inputs)
    assert value is not None
    assert points is not None
    assert offsets is not None
    sizes = (value[2], value[3], points[3], offsets[3], offsets[4])
    return Sizes(*(int(size) for size in sizes))  # type: ignore[arg-type]


@cache
def reference_graph(sizes: Sizes) -> ir.Graph:
    """The reference implementation, with free batch, tokens and queries; without initialisers."""
    heads, dim, reference_dim, levels, points = sizes
    shapes = torch.tensor([(2 * level + 3, level + 2) for level in range(levels, 0, -1)])
    num_tokens, num_queries = int(shapes.prod(1).sum()), 5
    example = (
        torch.zeros(EXAMPLE_BATCH, num_tokens, heads, dim),
        shapes.int(),
        torch.zeros(EXAMPLE_BATCH, num_queries, levels, reference_dim),
        torch.zeros(EXAMPLE_BATCH, num_queries, heads, levels, points, 2),
        torch.zeros(EXAMPLE_BATCH, num_queries, heads, levels, points),
    )
    free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    model = _export(_Reference().eval(), example, dynamic_shapes=(free, {}, free, free, free))
    with _quiet():
        simplify(model)
    graph = model.graph
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        constant = ir.node("Constant", [], attributes={"value": value.const_value})
        graph.insert_before(graph[0], constant)
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
    graph.initializers.clear()
    return graph


def _replace_attention(model: ir.Model, sizes: Sequence[Sizes]) -> None:
    """Replace every MSDeformAttn node with the reference implementation."""
    for node, size in zip(_attention_nodes(model), sizes, strict=True):
        node.overload = f"{size.reference_dim}d"
        graph = reference_graph(size).clone()
        function = ir.Function(
            OPERATOR_DOMAIN, node.op_type, node.overload, graph=graph, attributes=[]
        )
        model.functions.setdefault(function.identifier(), function)
    lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    ir.passes.Sequential(passes.InlinePass(), lift)(model)


def _finish(model: ir.Model) -> None:
    """Drop what only helps debug the exporter, which includes local paths."""
    ir.passes.Sequential(
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.NameFixPass(),
    )(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    model.producer_name, model.producer_version = "detr-serve", "1"
    model.graph.name = "detr"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about itself: absent torchvision, its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
