"""Plans of TensorRT for one call of the operator, run on tensors of torch."""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bench_op import Call
from benchmarks.one_node import Gpu, find_gpu, named, plan_of_node
from engines.gpu.tensorrt_runtime import log_of, require
from model.network.ops.reference import sampling_locations

NVIDIAS = "MultiscaleDeformableAttnPlugin_TRT"


class Runner:
    """A plan with its tensors in GPU memory; a call launches it in torch's stream."""

    def __init__(self, gpu: Gpu, plan: bytes, *, inputs: Mapping[str, Tensor]) -> None:
        runtime = gpu.trt.Runtime(log_of(gpu.trt))
        self._trt = gpu.trt
        self._engine = require(
            gpu.trt, runtime.deserialize_cuda_engine(plan), call="deserialisation"
        )
        context = self._engine.create_execution_context()
        self._context = require(gpu.trt, context, call="create_execution_context")
        self.tensors = dict(inputs)
        for name, tensor in inputs.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
        for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors)):
            if name not in inputs:
                dtype = getattr(torch, _torch_name(self._engine.get_tensor_dtype(name).name))
                shape = tuple(self._context.get_tensor_shape(name))
                self.tensors[name] = torch.empty(shape, dtype=dtype, device="cuda")
            address = self.tensors[name].data_ptr()
            require(gpu.trt, self._context.set_tensor_address(name, address), call=name)

    def __call__(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        require(self._trt, self._context.execute_async_v3(stream), call="execute_async_v3")


def _torch_name(name: str) -> str:
    return {"HALF": "float16", "FLOAT": "float32", "BF16": "bfloat16"}.get(name, name.lower())


def on_gpu(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the GPU."""
    return {name: tensor.contiguous().cuda() for name, tensor in inputs.items()}


def our_plan(call: Call) -> Runner:
    """Our plugin."""
    gpu = _gpu()
    inputs = on_gpu(
        named((call.value, call.shapes, call.reference_points, call.offsets, call.logits))
    )
    shape = (*call.offsets.shape[:2], call.value.shape[2:].numel())
    return Runner(gpu, _plan(gpu, inputs, output_shape=shape), inputs=inputs)


def their_plan(call: Call) -> Runner:
    """NVIDIA's plugin, whose newest version takes no bfloat16."""
    if call.value.dtype == torch.bfloat16:
        raise ValueError("the plugin does not take bfloat16")
    gpu = _gpu()
    starts = torch.tensor(call.shapes).prod(1).cumsum(0)
    locations = sampling_locations(call.shapes, call.reference_points, call.offsets)
    inputs = on_gpu(
        {
            "value": call.value,
            "spatial_shapes": torch.tensor(call.shapes, dtype=torch.int32),
            "level_start_index": torch.tensor([0, *starts[:-1]], dtype=torch.int32),
            "sampling_locations": locations.to(call.value.dtype),
            "attention_weights": call.logits.flatten(-2).softmax(-1).view_as(call.logits),
        }
    )
    plan = _plan(
        gpu,
        inputs,
        output_shape=(*call.offsets.shape[:3], call.value.shape[-1]),
        operator=NVIDIAS,
        plugin_version=_version(gpu, NVIDIAS),
    )
    return Runner(gpu, plan, inputs=inputs)


_gpu = cache(find_gpu)
_PLANS: dict[str, bytes] = {}


def _plan(
    gpu: Gpu, inputs: Mapping[str, Tensor], *, output_shape: tuple[int, ...], **node: str
) -> bytes:
    """A plan, built once for inputs of the same shapes and types."""
    key = repr([(name, t.shape, t.dtype) for name, t in inputs.items()])
    if key not in _PLANS:
        with tempfile.TemporaryDirectory() as scratch:
            _PLANS[key] = plan_of_node(
                gpu, inputs, output_shape=output_shape, directory=Path(scratch), **node
            )
    return _PLANS[key]


def _version(gpu: Gpu, name: str) -> str:
    """The newest version of one of NVIDIA's own plugins."""
    gpu.trt.init_libnvinfer_plugins(log_of(gpu.trt), "")
    creators = gpu.trt.get_plugin_registry().all_creators
    versions = [creator.plugin_version for creator in creators if creator.name == name]
    if not versions:
        raise ValueError(f"TensorRT {gpu.trt.__version__} brings no plugin {name}")
    return str(max(versions))
