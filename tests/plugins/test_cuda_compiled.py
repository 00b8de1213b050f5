"""What nvcc makes of the kernels: registers, spills, widths of loads, numbers of instructions."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

import pytest

from plugins.build import GPUS, NVCC_FLAGS
from tests.plugins.emulated import BACKWARD, KERNEL, PER_CHANNEL

TYPES = {"float32": "f", "float16": "6__half", "bfloat16": "13__nv_bfloat16"}  # as C++ mangles them
FOR_GRADIENTS = (75, 90)  # the oldest, and the first with vector atomics; all would take a minute
FOR_COMPARISON = (75, 80, 90, 100, 120)  # one GPU of every major compute capability but 11
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SAMPLES = 16  # of a query and head, L = P = 4
WARNINGS = "--Werror=all-warnings"
REGISTERS_FOR_HALF_OF_THE_THREADS = 64  # of 65,536 a multiprocessor: 1,024 threads


def nvdisasm() -> Path | None:
    """NVIDIA's disassembler, from the package of that name."""
    try:
        found = files("nvidia-cuda-nvdisasm") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in found if file.name == "nvdisasm"), None)


pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc"),
    pytest.mark.skipif(nvdisasm() is None, reason="no nvdisasm"),
]


class Function(NamedTuple):
    """A kernel for a GPU: what the assembler said of it, and its instructions."""

    gpu: int
    name: str
    registers: int
    spilled_bytes: int
    instructions: list[str]

    def count(self, pattern: str) -> int:
        """How many instructions match."""
        return sum(re.search(pattern, instruction) is not None for instruction in self.instructions)


def compile_for_all(source: Path, directory: Path, gpus: Sequence[int] = GPUS) -> list[Function]:
    """Compile with the plugin's own flags for every GPU, and take the outcome apart."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        functions = pool.map(lambda gpu: compile_for(gpu, source, directory / f"{gpu}.cubin"), gpus)
        return [function for of_gpu in functions for function in of_gpu]


def compile_for(gpu: int, source: Path, cubin: Path) -> list[Function]:
    """The kernels of a file for one GPU."""
    options = [*NVCC_FLAGS, f"--gpu-architecture=sm_{gpu}", "--resource-usage", "--cubin", WARNINGS]
    result = subprocess.run(
        ["nvcc", *options, str(source), f"--output-file={cubin}"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    instructions = disassemble(cubin)
    return [
        Function(gpu, name, int(registers), int(stored) + int(loaded), instructions[name])
        for name, stored, loaded, registers in re.findall(
            r"Function properties for (\w+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
            r".*?Used (\d+) registers",
            result.stderr,
            flags=re.S,
        )
    ]


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The instructions of every kernel, up to its last EXIT; what follows is padding."""
    listing = subprocess.run(
        [str(nvdisasm()), "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    kernels = {}
    for section in re.split(r"\.section\s+\.text\.", listing)[1:]:
        instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", section, flags=re.M)
        last = max(i for i, text in enumerate(instructions) if re.search(r"\bEXIT\b", text))
        kernels[section.split(",")[0]] = instructions[: last + 1]
    return kernels


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Function]:
    return compile_for_all(KERNEL, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> list[Function]:
    return compile_for_all(PER_CHANNEL, tmp_path_factory.mktemp("yardstick"), FOR_COMPARISON)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> list[Function]:
    return compile_for_all(BACKWARD, tmp_path_factory.mktemp("gradients"), FOR_GRADIENTS)


def find(functions: list[Function], gpu: int, mangled: str) -> Function:
    """The one kernel of a GPU with this in its mangled name."""
    (found,) = (f for f in functions if f.gpu == gpu and mangled in f.name)
    return found


@pytest.mark.parametrize("gpu", GPUS)
def test_no_kernel_spills_registers(kernels: list[Function], gpu: int) -> None:
    spilled = {function.name: function.spilled_bytes for function in kernels if function.gpu == gpu}

    assert len(spilled) == 12
    assert set(spilled.values()) == {0}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_fast_path_leaves_room_for_half_of_the_threads(kernels, dtype: str, gpu: int) -> None:
    function = find(kernels, gpu, f"fast6kernelI{TYPES[dtype]}Li2E")

    assert function.registers <= REGISTERS_FOR_HALF_OF_THE_THREADS


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_fast_path_loads_values_16_bytes_at_a_time(
    kernels, dtype: str, width: int, gpu: int
) -> None:
    function = find(kernels, gpu, f"fast6kernelI{TYPES[dtype]}Li{width}E")
    threads_of_a_sample = 32 * BYTES[dtype] // 16
    samples_of_a_thread = SAMPLES * threads_of_a_sample // 16

    assert function.count(r"\bLDG\.E\.128\b") == 4 * samples_of_a_thread  # four pixels each


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_general_path_loads_values_16_bytes_at_a_time(kernels, dtype: str, gpu: int) -> None:
    function = find(kernels, gpu, f"general6kernelI{TYPES[dtype]}Li{16 // BYTES[dtype]}E")

    assert function.count(r"\bLDG\.E\.128\b") >= 4


@pytest.mark.parametrize("gpu", FOR_COMPARISON)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_fast_path_takes_a_quarter_of_the_yardsticks_instructions(
    kernels, yardstick, dtype: str, width: int, gpu: int
) -> None:
    """Neither kernel jumps, so that a warp executes every instruction once.

    A warp of the fast path does 2 queries and heads, 32 samples; a warp of the yardstick, a thread
    a channel of 32, does one.
    """
    fast = find(kernels, gpu, f"fast6kernelI{TYPES[dtype]}Li{width}E")
    slow = find(yardstick, gpu, f"perChannelKernelI{TYPES[dtype]}Li{width}E")

    assert fast.count(JUMP) == slow.count(JUMP) == 0
    assert len(fast.instructions) / (2 * SAMPLES) <= len(slow.instructions) / SAMPLES / 4


@pytest.mark.parametrize("gpu", FOR_GRADIENTS)
def test_no_kernel_of_gradients_spills_registers(gradients: list[Function], gpu: int) -> None:
    spilled = {f.name: f.spilled_bytes for f in gradients if f.gpu == gpu}

    assert len(spilled) == 10
    assert set(spilled.values()) == {0}


@pytest.mark.parametrize(("gpu", "numbers_at_once"), [(75, 1), (90, 4)])
@pytest.mark.parametrize("dtype", TYPES)
def test_four_numbers_are_added_at_once_where_the_gpu_can(
    gradients: list[Function], dtype: str, gpu: int, numbers_at_once: int
) -> None:
    function = find(gradients, gpu, f"kernelI{TYPES[dtype]}Li4E")

    vectors = function.count(r"\bREDG?\.E\.ADD\.F32x4\b")
    numbers = function.count(r"\bREDG?\.E\.ADD\.F32\.")
    assert (vectors, numbers) == ((0, 32) if numbers_at_once == 1 else (8, 0))


JUMP = r"\b(BRA|BRX|JMP|JMX|CALL|RET|BSSY|BSYNC|WARPSYNC\.\w+)\b"
