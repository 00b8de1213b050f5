"""The fakes offer nothing that the real modules do not, by the same names and values."""

import inspect
import os
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
import tensorrt_lean
import tensorrt_rtx
from cuda.bindings import runtime

from tests import fake_tensorrt, fake_tensorrt_builder
from tests.fake_cuda import CudaErrorCode, FakeCuda

ROOT = Path(__file__).parents[3]


def public(kind: type) -> set[str]:
    """Methods and properties that a class of a fake defines."""
    return {
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }


@pytest.mark.parametrize("name", sorted(n for n in public(FakeCuda) if n.startswith("cuda")))
def test_the_runtime_has_every_function_of_the_fake(name: str) -> None:
    assert callable(getattr(runtime, name))


@pytest.mark.parametrize("name", sorted(n for n in public(FakeCuda) if n.startswith("cuda")))
def test_a_function_takes_as_many_arguments_as_that_of_the_fake(name: str) -> None:
    signature = (getattr(runtime, name).__doc__ or "").splitlines()[0]
    num_arguments = len([part for part in signature.split("(", 1)[1].split(",") if part != ")"])

    assert num_arguments == len(inspect.signature(getattr(FakeCuda, name)).parameters) - 1


def test_constants_have_the_values_of_the_runtime() -> None:
    constants = {name: value for name, value in vars(FakeCuda).items() if isinstance(value, int)}

    assert constants == {name: getattr(runtime, name) for name in constants}
    assert {code.name: int(code) for code in CudaErrorCode} == {
        code.name: int(getattr(runtime.cudaError_t, code.name)) for code in CudaErrorCode
    }
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for name, value in vars(getattr(FakeCuda, kind)).items():
            assert value == int(getattr(getattr(runtime, kind), name))


def test_a_process_without_a_gpu_is_told_so() -> None:
    program = "from engines.gpu.cuda import load_cuda; load_cuda()"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # hides the GPUs of a machine with some

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert re.search(
        "ValueError: .*(no NVIDIA driver|no GPU|cannot be used).*nvidia-smi", result.stderr
    )


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (fake_tensorrt.Runtime, tensorrt_lean.Runtime),
        (fake_tensorrt.Engine, tensorrt_lean.ICudaEngine),
        (fake_tensorrt.Context, tensorrt_lean.IExecutionContext),
        (fake_tensorrt.Registry, tensorrt_lean.IPluginRegistry),
        (fake_tensorrt_builder.Builder, tensorrt_rtx.Builder),
        (fake_tensorrt_builder.Config, tensorrt_rtx.IBuilderConfig),
        (fake_tensorrt_builder.Shapes, tensorrt_rtx.IOptimizationProfile),
        (fake_tensorrt_builder.Cache, tensorrt_rtx.ITimingCache),
        (fake_tensorrt_builder.Parser, tensorrt_rtx.OnnxParser),
    ],
    ids=lambda kind: kind.__name__,
)
def test_tensorrt_has_every_method_of_the_fake(fake: type, real: type) -> None:
    assert public(fake) - {"activation_bytes"} <= set(dir(real))


@pytest.mark.parametrize(
    "name",
    [name for name, kind in vars(fake_tensorrt.FakeTensorRT).items() if isinstance(kind, type)],
)
def test_tensorrt_has_every_member_of_an_enumeration_of_the_fake(name: str) -> None:
    fake, real = getattr(fake_tensorrt.FakeTensorRT, name), getattr(tensorrt_rtx, name)
    members = fake.__members__ if issubclass(fake, Enum) else public(fake)

    assert [member for member in members if not hasattr(real, member)] == []
