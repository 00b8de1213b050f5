"""A bundle's ONNX graph as a program of torch, on one device.

What depends on the size of the batch alone is computed on the host, once for every shape: sizes,
ranges, the level shapes of the operator. The device is left with what depends on the pixels, so
that a shape's later runs move nothing between host and device, and can be captured.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from bundle.manifest import REMEDY
from engines.gpu.torch_operators import OPERATORS, SIZES, tensor_of


class Known(NamedTuple):
    """What all runs of one shape share: results on the host, and their copies on the device."""

    on_host: dict[ir.Value, Tensor]
    on_device: dict[ir.Value, Tensor]
    as_integers: dict[ir.Value, list[int]]

    @classmethod
    def nothing(cls) -> "Known":
        """For a shape that has not run yet."""
        return cls({}, {}, {})


class _Step(NamedTuple):
    """A node, and what stays the same from run to run."""

    node: ir.Node
    function: Callable[..., Any]
    attributes: dict[str, Any]
    sizes: tuple[int, ...]  # places of the inputs that are needed as integers
    is_on_host: bool
    last_uses: tuple[ir.Value, ...]  # what neither a later step nor the outputs need


class Program:
    """A graph, ready to run."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Read a graph and move its weights to the device.

        Raises:
            ValueError: the file cannot be read, or has an operator that is not known here.
        """
        graph = _read(path)
        unknown = {node.op_type for node in graph} - OPERATORS.keys()
        if unknown:
            raise ValueError(f"{path}: unknown operators {sorted(unknown)}; {REMEDY}")
        self._device = device
        self._inputs, self._outputs = list(graph.inputs), list(graph.outputs)
        self.input_names, self.output_names = (
            [str(value.name) for value in values] for values in (self._inputs, self._outputs)
        )
        self._constants = _constants(graph)
        self._steps = list(_steps(graph, self._constants.keys()))
        for step in self._steps:
            for place, value in enumerate(step.node.inputs):
                is_number = not step.is_on_host and place not in step.sizes
                if is_number and value in self._constants:
                    self._constants[value] = self._constants[value].to(device)

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor], *, known: Known) -> tuple[Tensor, ...]:
        """The outputs, in the order of `output_names`, on the device.

        Args:
            inputs: by name, on the device.
            known: from earlier runs of this shape; the first one fills it in.
        """
        values = {value: inputs[str(value.name)] for value in self._inputs}
        for step in self._steps:
            if step.is_on_host and known.on_host.keys() >= set(step.node.outputs):
                continue
            arguments = [
                None if value is None else self._argument(step, place, values, known)
                for place, value in enumerate(step.node.inputs)
            ]
            results = _results(step.function(*arguments, **step.attributes))
            kept = known.on_host if step.is_on_host else values
            kept.update(zip(step.node.outputs, results, strict=True))
            for value in step.last_uses:
                values.pop(value, None)
        return tuple(values[value] for value in self._outputs)

    def _argument(
        self, step: _Step, place: int, values: Mapping[ir.Value, Tensor], known: Known
    ) -> Tensor | list[int]:
        value = step.node.inputs[place]
        assert value is not None
        if value in values:
            return values[value]
        fixed = self._constants[value] if value in self._constants else known.on_host[value]
        if place in step.sizes:
            if value not in known.as_integers:
                known.as_integers[value] = fixed.flatten().tolist()
            return known.as_integers[value]
        if step.is_on_host:
            return fixed.cpu()
        if value not in known.on_device:
            known.on_device[value] = fixed.to(self._device)
        return known.on_device[value]


def _read(path: Path) -> ir.Graph:
    try:
        return ir.load(path).graph
    except (OSError, ValueError, DecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a graph ({error}); {REMEDY}") from error


def _results(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _constants(graph: ir.Graph) -> dict[ir.Value, Tensor]:
    """The weights, and what is computed from nothing else."""
    weights = ((value, value.const_value) for value in graph.initializers.values())
    known = {value: tensor_of(number.numpy()) for value, number in weights if number is not None}
    for node in graph:
        if all(value is None or value in known for value in node.inputs):
            sizes = SIZES.get(node.op_type, ())
            arguments = [
                None
                if value is None
                else known[value].flatten().tolist()
                if place in sizes
                else known[value]
                for place, value in enumerate(node.inputs)
            ]
            results = _results(OPERATORS[node.op_type](*arguments, **_attributes(node)))
            known.update(zip(node.outputs, results, strict=True))
    return known


def _steps(graph: ir.Graph, constants: Collection[ir.Value]) -> Iterator[_Step]:
    """The nodes to run, each with where it runs."""
    on_device = set(graph.inputs)
    last_uses = _last_uses(graph)
    for node in graph:
        if all(output in constants for output in node.outputs):
            continue
        is_on_host = node.op_type == "Shape" or on_device.isdisjoint(node.inputs)
        if not is_on_host:
            on_device.update(node.outputs)
        yield _Step(
            node,
            OPERATORS[node.op_type],
            _attributes(node),
            SIZES.get(node.op_type, ()),
            is_on_host,
            last_uses[node],
        )


def _last_uses(graph: ir.Graph) -> dict[ir.Node, tuple[ir.Value, ...]]:
    needed = set(graph.outputs)
    found = {}
    for node in reversed(graph):
        last = {value for value in node.inputs if value is not None} - needed
        needed |= last
        found[node] = tuple(last)
    return found
