"""TensorRT engines of a single node, and what they need on this machine."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from bundle.layout import OPERATOR, OPERATOR_DOMAIN
from engines.gpu.cuda import Cuda, DeviceMemory, PinnedMemory, Stream, load_cuda
from engines.gpu.tensorrt_builder import BuildOptions, build_plan
from engines.gpu.tensorrt_runtime import (
    find_plugin,
    load_plugin,
    load_tensorrt,
    log_of,
    require,
)

ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int32: TensorProto.INT32,
}


class Gpu(NamedTuple):
    """TensorRT and CUDA on a machine with a GPU, and the plugin library."""

    trt: Any
    cuda: Cuda
    plugin: Path


def find_gpu() -> Gpu:
    """Find them; raises ValueError, which says what to do, if one is missing."""
    cuda, trt, plugin = load_cuda(), load_tensorrt(), find_plugin()
    load_plugin(trt, plugin)
    assert plugin is not None
    return Gpu(trt, cuda, plugin)


def named(
    call: tuple[Tensor, Sequence[tuple[int, int]], Tensor, Tensor, Tensor],
) -> dict[str, Tensor]:
    """The arguments of `ms_deform_attn` as named inputs of the node."""
    value, shapes, reference_points, offsets, logits = call
    return {
        "value": value,
        "spatial_shapes": torch.tensor(shapes, dtype=torch.int32),
        "reference_points": reference_points,
        "sampling_offsets": offsets,
        "attention_logits": logits,
    }


def plan_of_node(
    gpu: Gpu,
    inputs: Mapping[str, Tensor],
    *,
    output_shape: tuple[int, ...],
    directory: Path,
    operator: str = OPERATOR,
    **attributes: Any,
) -> bytes:
    """A plan for a node with these inputs and fixed shapes; its output has the type of value."""
    dtype = ONNX_TYPES[inputs["value"].dtype]
    node = helper.make_node(
        operator, list(inputs), ["output"], domain=OPERATOR_DOMAIN, **attributes
    )
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(name, ONNX_TYPES[tensor.dtype], list(tensor.shape))
            for name, tensor in inputs.items()
        ],
        [helper.make_tensor_value_info("output", dtype, list(output_shape))],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(OPERATOR_DOMAIN, 1)]
    path = directory / "node.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return build_plan(gpu.trt, path, inputs=(), options=BuildOptions((), gpu.plugin))


def run_plan(gpu: Gpu, plan: bytes, *, inputs: Mapping[str, Tensor], output: Tensor) -> None:
    """Run a plan of fixed shapes once; writes `output`, which is on the CPU like the inputs."""
    with ExitStack() as stack:
        runtime = gpu.trt.Runtime(log_of(gpu.trt))
        engine = require(
            gpu.trt, runtime.deserialize_cuda_engine(plan), call="deserialize_cuda_engine"
        )
        context = require(
            gpu.trt, engine.create_execution_context(), call="create_execution_context"
        )
        stream = Stream(gpu.cuda)
        stack.callback(stream.close)
        tensors = {**inputs, "output": output}
        memory = {}
        for name, tensor in tensors.items():
            size = math.prod(tensor.shape) * tensor.element_size()
            device, host = DeviceMemory(gpu.cuda, size), PinnedMemory(gpu.cuda, size)
            stack.callback(device.close)
            stack.callback(host.close)
            memory[name] = device, host, size
            require(gpu.trt, context.set_tensor_address(name, device.address), call=name)
            if name != "output" and size:
                host.bytes[:size] = tensor.contiguous().flatten().view(torch.uint8).numpy()
                stream.upload(device.address, host.bytes[:size])
        require(gpu.trt, context.execute_async_v3(stream.handle), call="execute_async_v3")
        device, host, size = memory["output"]
        if size:
            stream.download(host.bytes[:size], device.address)
        stream.synchronize()
        if size:
            output.view(-1).view(torch.uint8).numpy()[:] = host.bytes[:size]
