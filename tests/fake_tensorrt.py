"""TensorRT without a GPU: plans are JSON, and ONNX Runtime computes what the engine would.

It stands in for the module `tensorrt` on top of a FakeCuda, and raises `Misuse` where the order of
calls is one that TensorRT leaves undefined.
"""

# ruff: noqa: N802 - the names are those of the real module

import ctypes
import itertools
import json
import math
import weakref
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from tests.fake_cuda import FakeCuda, Misuse, Work
from tests.fake_tensorrt_builder import Builder, Config, Parser

DTYPES = {"UINT8": "uint8", "BOOL": "bool", "INT64": "int64", "FLOAT": "float32"}
ORT_DTYPES = {
    "tensor(uint8)": "UINT8",
    "tensor(bool)": "BOOL",
    "tensor(int64)": "INT64",
    "tensor(float)": "FLOAT",
}
ACTIVATION_BYTES = 10  # for each pixel of a batch
Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
Mode = Enum("Mode", "INPUT OUTPUT")


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity


class IProgressMonitor:
    pass


class FakeTensorRT:
    """The module. A test may set what it claims to be, and what the next build ends with."""

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    ExecutionContextAllocationStrategy = Enum(
        "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
    )
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    BuilderFlag = Enum("BuilderFlag", "TF32")
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")

    def __init__(self, cuda: FakeCuda, version: str = "11.4.0.106") -> None:
        self.cuda = cuda
        self.__version__ = version
        self.__name__ = "tensorrt"
        self.registry = Registry(self)
        self.log: Any = None  # the first that is given, as in TensorRT
        self.can_capture = True
        self.errors: dict[str, str] = {}  # what a function logs, and fails
        self.builds: list[Config] = []
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.last_profile = -1  # of the run that was enqueued last
        self.misuses: list[str] = []  # seen where an exception would be lost

    def get_plugin_registry(self) -> "Registry":
        return self.registry

    def Runtime(self, log: Any) -> "Runtime":
        return Runtime(self, log)

    def Builder(self, log: Any) -> Builder:
        return Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Parser:
        return Parser(network)

    def fails(self, function: str) -> bool:
        """Whether the test wants this call to fail; TensorRT says why in its log only."""
        if function in self.errors:
            self.error(self.errors[function])
        return function in self.errors

    def error(self, message: str) -> None:
        if self.log is not None:
            self.log.log(ILogger.ERROR, message)

    def make_plan(self, graph: Path, profiles: Any, **changes: Any) -> bytes:
        """A plan of the graph; profiles as [{name: (min, opt, max)}], libraries embedded in it."""
        content = {
            "graph": str(graph),
            "profiles": profiles,
            "gpu": self.cuda.name.decode(),
            "tensorrt": self.__version__,
            "needs": None,
            "libraries": [],
        }
        return b"plan" + json.dumps(content | changes).encode()


class Registry:
    """Knows the operators of the libraries that were loaded; a library is a file of their names."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.all_creators: list[SimpleNamespace] = []

    def load_library(self, plugin_path: str) -> object | None:
        if not Path(plugin_path).is_file():
            self._trt.error(f"Unable to load library: {plugin_path}")
            return None
        names = Path(plugin_path).read_text().split()
        if {creator.name for creator in self.all_creators} & set(names):
            self._trt.error(f"plugin creator {names[0]} exists already in the registry")
            return None
        self.all_creators += [SimpleNamespace(name=name) for name in names]
        return object()


class Runtime:
    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self._trt = trt
        if trt.log is None:
            trt.log = log

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "Engine | None":
        if not serialized_engine.startswith(b"plan"):
            self._trt.error("Serialization assertion failed: magic tag does not match")
            return None
        plan = json.loads(serialized_engine[4:])
        if not all(self._trt.registry.load_library(path) for path in plan["libraries"]):
            return None
        operators = [creator.name for creator in self._trt.registry.all_creators]
        here = (self._trt.cuda.name.decode(), self._trt.__version__)
        if (plan["gpu"], plan["tensorrt"]) != here:
            self._trt.error("The engine plan file is not compatible with this device or version")
            return None
        if plan["needs"] and plan["needs"] not in operators:
            self._trt.error(f"Plugin not found: {plan['needs']}")
            return None
        return Engine(self._trt, plan)


class Engine:
    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any]) -> None:
        self.trt = trt
        self.profiles = plan["profiles"]
        self.session = onnxruntime.InferenceSession(plan["graph"])
        self.nodes = {node.name: node for node in self.session.get_inputs()}
        self.num_inputs = len(self.nodes)
        self.nodes |= {node.name: node for node in self.session.get_outputs()}
        self.num_io_tensors = len(self.nodes)
        self.num_optimization_profiles = len(self.profiles)
        self.device_memory_size_v2 = max(map(self.activation_bytes, range(len(self.profiles))))

    def activation_bytes(self, profile: int) -> int:
        *_, largest = self.profiles[profile]["padding_mask"]
        return math.prod(largest) * ACTIVATION_BYTES

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if list(self.nodes).index(name) < self.num_inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=ORT_DTYPES[self.nodes[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.nodes[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self.profiles[profile_index][name]

    def create_execution_context(self, strategy: object) -> "Context | None":
        assert strategy is FakeTensorRT.ExecutionContextAllocationStrategy.USER_MANAGED
        self.trt.cuda.refuse_capture()
        if self.trt.fails("create_execution_context"):
            return None
        return Context(self)


@dataclass(eq=False)
class State:
    version: int = 0  # of profile and shapes
    is_alive: bool = True


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._trt = engine.trt
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._memory = (0, 0)
        self._is_settled = False  # has run since its shapes were last changed
        self._state = State()  # what work in a stream refers to, so that it keeps no context alive
        self.active_optimization_profile = 0
        self._trt.contexts.add(self)

    def __del__(self) -> None:
        self._state.is_alive = False
        if self._trt.cuda.is_in_flight(self._state):
            self._trt.misuses.append("a context was destroyed while it was running")

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine.nodes
        self._addresses[name] = memory
        return not self._trt.fails("set_tensor_address")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._require_idle()
        assert profile_index < self._engine.num_optimization_profiles
        if self._trt.fails("set_optimization_profile_async"):
            return False
        self.active_optimization_profile = profile_index
        self._memory = (0, 0)
        self._shapes, self._is_settled = {}, False
        self._state.version += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._require_idle()
        least, _, most = self._engine.profiles[self.active_optimization_profile][name]
        if self._trt.fails("set_input_shape"):
            return False
        if not all(low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True)):
            self._trt.error(f"{name}: {shape} is not within {least} and {most}")
            return False
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name], self._is_settled = tuple(shape), False
            self._state.version += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self._engine, self._trt.cuda
        if set(self._addresses) != set(engine.nodes):
            raise Misuse("not every tensor has an address")
        if len(self._shapes) != engine.num_inputs:
            raise Misuse("not every input has a shape in this profile")
        address, size = self._memory
        if size < engine.activation_bytes(self.active_optimization_profile):
            raise Misuse("the activations do not fit into the memory of the context")
        activations = cuda.block_at(address, size, "device")
        if cuda.is_capturing(stream_handle):
            if not self._is_settled:
                raise Misuse("captured before a plain run at this shape")
            if not self._trt.can_capture:
                self._trt.error("operation not permitted when stream is capturing")
                return False
        if self._trt.fails("execute_async_v3"):
            return False
        dims = self._dims()
        blocks = [
            cuda.block_at(self._addresses[name], num_bytes(engine, name, dims[name]), "device")
            for name in engine.nodes
        ]
        state, version, addresses = self._state, self._state.version, dict(self._addresses)

        def compute() -> None:
            if not state.is_alive or state.version != version:
                raise Misuse("a graph ran after its context was destroyed or set to another shape")
            run(engine, addresses, dims)

        cuda.put(stream_handle, Work(compute, (activations, *blocks, state)))
        self._is_settled = True
        self._trt.last_profile = self.active_optimization_profile
        return True

    def _dims(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, as TensorRT infers them; the free dimension of outputs is the batch."""
        batch = self._shapes["images"][0]
        return self._shapes | {
            name: tuple(batch if dim == -1 else dim for dim in self._engine.get_tensor_shape(name))
            for name in itertools.islice(self._engine.nodes, self._engine.num_inputs, None)
        }

    def _require_idle(self) -> None:
        if self._trt.cuda.is_in_flight(self._state):
            raise Misuse("a context was changed while it was running")


def num_bytes(engine: Engine, name: str, dims: tuple[int, ...]) -> int:
    return math.prod(dims) * np.dtype(DTYPES[engine.get_tensor_dtype(name).name]).itemsize


def run(engine: Engine, addresses: dict[str, int], dims: dict[str, tuple[int, ...]]) -> None:
    """Compute the outputs in place, as kernels do."""
    arrays = {}
    for name, shape in dims.items():
        dtype = DTYPES[engine.get_tensor_dtype(name).name]
        raw = (ctypes.c_uint8 * num_bytes(engine, name, shape)).from_address(addresses[name])
        arrays[name] = np.frombuffer(memoryview(raw), dtype).reshape(shape)
    inputs = {node.name: arrays[node.name] for node in engine.session.get_inputs()}
    outputs = [node.name for node in engine.session.get_outputs()]
    for name, answer in zip(outputs, engine.session.run(outputs, inputs), strict=True):
        arrays[name][...] = answer
