"""Inputs and outputs of a TensorRT engine: sizes, memory, and the check against the manifest."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.manifest import Manifest, TensorSpec
from bundle.tensorrt_plan import BatchShape, ShapeProfile
from engines.gpu.cuda import Cuda, PinnedMemory
from engines.gpu.tensorrt_runtime import REBUILD

# TensorRT's names for numpy's types, the same in 10 and 11.
_DTYPES = {
    "uint8": "UINT8",
    "bool": "BOOL",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "HALF",
    "float32": "FLOAT",
}


class PinnedTensor:
    """Pinned memory of one input or output, large enough for every profile."""

    def __init__(self, cuda: Cuda, spec: TensorSpec, *, profiles: tuple[ShapeProfile, ...]) -> None:
        self._spec = spec
        self._dtype = np.dtype(spec.dtype)
        self._memory = PinnedMemory(cuda, largest_bytes(spec, profiles))

    def array(self, shape: BatchShape) -> npt.NDArray[Any]:
        """The start of the memory, as the tensor for this shape of the batch."""
        dims = dims_of(self._spec, shape)
        num_bytes = math.prod(dims) * self._dtype.itemsize
        return self._memory.bytes[:num_bytes].view(self._dtype).reshape(dims)

    def close(self) -> None:
        """Free it."""
        self._memory.close()


def dims_of(spec: TensorSpec, shape: BatchShape) -> tuple[int, ...]:
    """The dimensions of a tensor whose free ones are named batch, height and width."""
    sizes = shape._asdict()
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)


def largest_bytes(spec: TensorSpec, profiles: tuple[ShapeProfile, ...]) -> int:
    """The bytes of a tensor for the largest batch of the profiles."""
    most = max(math.prod(dims_of(spec, profile.max)) for profile in profiles)
    return most * np.dtype(spec.dtype).itemsize


def check_tensors(engine: Any, manifest: Manifest, *, profiles: tuple[ShapeProfile, ...]) -> None:
    """Raise ValueError if tensors or profiles of the plan do not match the manifest."""
    for side, specs in (("INPUT", manifest.inputs), ("OUTPUT", manifest.outputs)):
        expected = {
            spec.name: (
                _DTYPES.get(spec.dtype, spec.dtype),
                tuple(_or_free(dim) for dim in spec.shape),
            )
            for spec in specs
        }
        found = {
            name: (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
            if engine.get_tensor_mode(name).name == side
        }
        _compare(f"{side.lower()}s", expected, found)
    _compare("number of profiles", len(profiles), engine.num_optimization_profiles)
    for index, profile in enumerate(profiles):
        for spec in manifest.inputs:
            wanted = [dims_of(spec, shape) for shape in (profile.min, profile.opt, profile.max)]
            built = map(tuple, engine.get_tensor_profile_shape(spec.name, index))
            _compare(f"profile {index} of {spec.name}", wanted, list(built))


def _or_free(dim: int | str) -> int:
    return dim if isinstance(dim, int) else -1


def _compare(subject: str, expected: object, found: object) -> None:
    if expected != found:
        raise ValueError(
            f"the plan does not match the manifest: expected {subject} {expected}, got {found}; "
            f"{REBUILD}"
        )
