"""Whether and where the CUDA kernels are launched, and what memory a call takes; emulated."""

import ctypes
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plugins.build import GPUS
from plugins.cuda_kernels import OLDEST, CudaKernels
from tests.ops.cases import OpCase
from tests.plugins.emulated import needs_compiler
from tests.plugins.test_cuda_gradients import TABLE, flat

pytestmark = needs_compiler


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (12080, "compiled with CUDA 13.0, and the driver supports CUDA 12.8; .* nvcc of CUDA 12,"),
        (13000, None),
        (13020, None),
        (14000, None),
    ],
)
def test_a_driver_of_an_older_cuda_is_named(
    kernels: CudaKernels, path: Path, driver: int, why: str | None
) -> None:
    ctypes.CDLL(str(path)).setDriver(driver)
    try:
        found = kernels.why_unusable((7, 5))
    finally:
        ctypes.CDLL(str(path)).setDriver(13000)

    assert (found is None) == (why is None)
    assert re.search(why or "^$", found or "")


def test_a_gpu_that_there_is_no_code_for_is_named(kernels: CudaKernels) -> None:
    oldest = min(GPUS)

    assert divmod(oldest, 10) == OLDEST
    assert kernels.why_unusable((7, 0)) == ("the GPU has compute capability 7.0, and they need 7.5")
    assert kernels.why_unusable((12, 1)) is None


class Made(TorchDispatchMode):
    """The shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        self.shapes += [tuple(t.shape) for t in tree_leaves(made) if isinstance(t, Tensor)]
        return made


def test_no_tensor_has_a_number_for_every_sample_but_the_results(kernels: CudaKernels) -> None:
    case = OpCase("many samples", queries=50)
    value, shapes, *others = case.inputs()
    samples = others[2].numel()

    with Made() as made:
        output = kernels.forward(value, flat(shapes), *others)
        kernels.backward(output, value, flat(shapes), *others)

    assert value.numel() < samples
    large = [shape for shape in made.shapes if math.prod(shape) >= samples]
    assert set(large) == {tuple(tensor.shape) for tensor in others[1:]}
    assert len(large) == 2


class OnGpu(Tensor):
    """A tensor of this CPU that says it is on a GPU."""

    is_cuda = True


def test_work_goes_to_the_current_stream_of_the_gpu_that_has_the_values(
    kernels: CudaKernels, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, streams = ["another GPU"], {"another GPU": 1, "cpu": 0x1230}

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        current.append(str(device))
        yield
        current.pop()

    stream = lambda: SimpleNamespace(cuda_stream=streams[current[-1]])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    of_launch = ctypes.CDLL(str(path)).streamOfLaunch
    of_launch.restype = ctypes.c_void_p
    value, shapes, *others = TABLE["one level"].inputs()
    on_gpu, *rest = (tensor.as_subclass(OnGpu) for tensor in (value, *others))

    output = kernels.forward(on_gpu, flat(shapes), *rest)
    after_forward = of_launch()
    streams["cpu"] = 0x4560
    kernels.backward(output, on_gpu, flat(shapes), *rest)

    assert (after_forward, of_launch()) == (0x1230, 0x4560)
    assert current == ["another GPU"]
