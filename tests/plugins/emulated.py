"""The CUDA kernels compiled for this CPU by a C++ compiler and run by tests/plugins/emulator.

Compiled programs are kept in build/tests, and compiled again when a source changes.
"""

import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from tests.ops.cases import OpCase

ROOT = Path(__file__).parents[2]
CORE = ROOT / "plugins" / "ms_deform_attn" / "core"
BINDINGS = ROOT / "plugins" / "ms_deform_attn" / "bindings"
EMULATOR = ROOT / "tests" / "plugins" / "emulator"
KERNEL = CORE / "kernel_cuda.cu"
TAPS = CORE / "taps_cuda.h"
BACKWARD = CORE / "backward_cuda.cu"
PER_CHANNEL = ROOT / "benchmarks" / "kernel_per_channel.cu"

COMPILER = os.environ.get("CXX") or "g++"
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
INCLUDES = ("-Wno-unknown-pragmas", "-I", str(EMULATOR), "-I", str(CORE))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})"
)

# What the sources include of ours.
HEADERS = (
    *sorted(EMULATOR.glob("*.h")),
    *(
        CORE / name
        for name in (
            *("kernel_cuda.h", "params.h", "sampling.h", "taps_cuda.h"),
            *("tensor_cores_cuda.h", "value_sums_cuda.h"),
        )
    ),
    *sorted(BINDINGS.glob("tensorrt_*.h")),
)

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # numbers of detr::DataType


def build(name: str, sources: Iterable[Path], flags: Sequence[str], link: Sequence[str]) -> Path:
    """A program or library of these sources; every object is compiled once and kept."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _object(source, flags), sources))
    return _made(name, [COMPILER, *map(str, objects), *link], objects)


def _object(source: Path, flags: Sequence[str]) -> Path:
    command = [COMPILER, *flags, "-x", "c++", "-c", str(source)]
    beside = sorted(source.parent.glob("*.h"))  # which a changed copy may have
    return _made(f"{source.stem}.o", command, [source, *beside, *HEADERS])


def _made(name: str, command: list[str], inputs: Iterable[Path]) -> Path:
    """Run a command that writes the file after -o, unless the same inputs have made it before."""
    digest = hashlib.sha256(repr(command).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    target = ROOT / "build" / "tests" / f"{digest.hexdigest()[:16]}-{name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # tests side by side wait for what one of them compiles
        if not target.exists():
            unfinished = target.with_name(f"{os.getpid()}-{target.name}")
            command = [*command, "-o", str(unfinished)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
            os.replace(unfinished, target)
    return target


def barriers(source: Path) -> list[tuple[str, int]]:
    """Every barrier in a file of kernels: its name and line."""
    return [
        (name, number)
        for number, line in enumerate(source.read_text().splitlines(), start=1)
        for name in re.findall(r"__sync\w+", line)
    ]


def program(*, kernel: Path = KERNEL, sanitize: bool = False) -> Path:
    """The program that runs calls from a file, with this source of the kernels."""
    sanitizers = SANITIZERS if sanitize else ()
    sources = [kernel, PER_CHANNEL, EMULATOR / "fibres.cpp", EMULATOR / "run_cases.cpp"]
    return build("run_cases", sources, [*FLAGS, *INCLUDES, *sanitizers], sanitizers)


def library() -> Path:
    """The library that PyTorch loads, for tensors of this CPU."""
    sources = [KERNEL, BACKWARD, CORE / "shapes_cuda.cu", BINDINGS / "cuda_c_api.cpp"]
    sources += [EMULATOR / "fibres.cpp", EMULATOR / "set_order.cpp"]
    link = ["-shared", "-Wl,-z,defs"]
    return build("libms_deform_attn_cuda.so", sources, [*FLAGS, *INCLUDES], link)


def gradients_program(backward: Path) -> Path:
    """A program that runs the gradients of calls from a file, under the sanitizers."""
    sources = [KERNEL, backward, EMULATOR / "fibres.cpp", EMULATOR / "run_gradients.cpp"]
    return build("run_gradients", sources, [*FLAGS, *INCLUDES, *SANITIZERS], SANITIZERS)


class Call(NamedTuple):
    """One call of the operator: its arguments, and the addresses of value and output."""

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    reference_points: Tensor
    sampling_offsets: Tensor
    attention_logits: Tensor
    shift: int = 0  # elements from a multiple of 16 bytes to value, and to output
    offsets_shift: int = 0  # and elements that the offsets do

    @classmethod
    def of(cls, case: OpCase, dtype: torch.dtype, shift: int = 0) -> "Call":
        """The call of a case, with inputs rounded to a type."""
        return cls(*case.inputs(dtype), shift)

    def output_shape(self) -> tuple[int, int, int]:
        """(B, Q, M * D)."""
        batch, queries, heads = self.attention_logits.shape[:3]
        return batch, queries, heads * self.value.shape[3]

    def to_bytes(self) -> bytes:
        """As the emulator's cases.h reads it."""
        batch, tokens, heads, head_dim = self.value.shape
        queries, levels, points = (self.attention_logits.shape[axis] for axis in (1, 3, 4))
        width, size = self.reference_points.shape[-1], self.value.element_size()
        header = struct.pack(
            "11i",
            *(TYPES[self.value.dtype], batch, tokens, queries, heads, head_dim, levels, points),
            *(width, self.shift * size, self.offsets_shift * size),
        )
        shapes = torch.tensor(self.spatial_shapes, dtype=torch.int32)
        tensors = (self.value, shapes, *self[2:5])
        return header + b"".join(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def outputs(calls: Sequence[Call], data: bytes) -> list[Tensor]:
    """The output of every call, as they follow each other in a file."""
    results, rest = [], bytearray(data)
    for call in calls:
        shape, dtype = call.output_shape(), call.value.dtype
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        results.append(
            torch.frombuffer(rest[:size] + b"\0" * 4, dtype=dtype)[
                : size // dtype.itemsize
            ].reshape(shape)
        )
        rest = rest[size:]
    assert not rest
    return results


class Run(NamedTuple):
    """What the program made of a list of calls."""

    outputs: list[Tensor]
    launches: list[str]  # a line a call: the grid and what was returned


def run(
    path: Path,
    calls: Sequence[Call],
    directory: Path,
    *,
    kernel: str = "fused",
    order: str = "forward",
    without_line: int = 0,
) -> Run:
    """Run calls with the program at `path`; `directory` takes the files.

    The barrier on line `without_line` of the kernels' source is left out.
    """
    source, target = directory / "calls", directory / "outputs"
    source.write_bytes(b"".join(call.to_bytes() for call in calls))
    result = subprocess.run(
        [str(path), kernel, order, str(without_line), str(source), str(target)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return Run(outputs(calls, target.read_bytes()), result.stdout.splitlines())
