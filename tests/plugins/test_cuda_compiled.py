"""What nvcc makes of the kernels: registers, spills, widths of loads, numbers of instructions."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

import pytest

from plugins import library
from plugins.build import GPUS, NVCC_FLAGS
from tests.plugins.emulated import PER_CHANNEL

TYPES = {"float32": "f", "float16": "6__half", "bfloat16": "13__nv_bfloat16"}  # as C++ mangles them
FOR_COMPARISON = (75, 90, 120)  # the oldest, the newest, and one between; each takes 5 CPU seconds
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SAMPLES = 16  # of a query and head, L = P = 4
WARNINGS = "--Werror=all-warnings"
REGISTERS_FOR_HALF_OF_THE_THREADS = 64  # of 65,536 a multiprocessor: 1,024 threads


def tool(name: str) -> Path | None:
    """NVIDIA's disassembler, nvdisasm, or cuobjdump, from the package of that name."""
    try:
        found = files(f"nvidia-cuda-{name}") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in found if file.name == name), None)


pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc"),
    *(
        pytest.mark.skipif(tool(name) is None, reason=f"no {name}; run make install")
        for name in ("nvdisasm", "cuobjdump")
    ),
]


class Function(NamedTuple):
    """A kernel for a GPU: what cuobjdump says of it, and its instructions."""

    gpu: int
    name: str
    registers: int
    instructions: list[str]

    def count(self, pattern: str) -> int:
        """How many instructions match."""
        return sum(re.search(pattern, instruction) is not None for instruction in self.instructions)

    def uses_local_memory(self) -> bool:
        """Whether it loads or stores there, which is where registers are spilled to."""
        return self.count(r"\b(LDL|STL)\b") > 0


def read(binary: Path, directory: Path) -> list[Function]:
    """Every kernel in a library or object, for every GPU; `directory` takes its parts."""
    cuobjdump = str(tool("cuobjdump"))
    extract = [cuobjdump, "--extract-elf", "all", str(binary)]
    subprocess.run(extract, cwd=directory, check=True, capture_output=True)
    usage = [cuobjdump, "--dump-resource-usage", str(binary)]
    listing = subprocess.run(usage, check=True, capture_output=True, text=True).stdout
    registers = {}
    for part in listing.split("\narch = sm_")[1:]:
        for name, number in re.findall(r"Function (\w+):\n\s+REG:(\d+)", part):
            registers[int(part.split()[0]), name] = int(number)
    cubins = sorted(directory.glob("*.cubin"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = zip(cubins, pool.map(disassemble, cubins), strict=True)
    return [
        Function(gpu_of(cubin), name, registers[gpu_of(cubin), name], instructions)
        for cubin, kernels in parts
        for name, instructions in kernels.items()
    ]


def gpu_of(cubin: Path) -> int:
    """The compute capability in the name that cuobjdump gives a file: library.3.sm_90.cubin."""
    return int(cubin.stem.rpartition("sm_")[2])


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The instructions of every kernel, up to its last EXIT; what follows is padding."""
    listing = subprocess.run(
        [str(tool("nvdisasm")), "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    kernels = {}
    for section in re.split(r"\.section\s+\.text\.", listing)[1:]:
        instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", section, flags=re.M)
        last = max(i for i, text in enumerate(instructions) if re.search(r"\bEXIT\b", text))
        kernels[section.split(",")[0]] = instructions[: last + 1]
    return kernels


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> list[Function]:
    """All kernels of the library that was built for PyTorch; the plugin has the same object."""
    path = library.find(library.CUDA_KERNELS)
    assert path is not None, "run make plugins"
    return read(path, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def kernels(functions: list[Function]) -> list[Function]:
    """Those of the operator."""
    return [f for f in functions if "fast6kernel" in f.name or "general6kernel" in f.name]


@pytest.fixture(scope="module")
def gradients(functions: list[Function]) -> list[Function]:
    return [f for f in functions if "backward_cuda_cu" in f.name]


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> list[Function]:
    directory = tmp_path_factory.mktemp("yardstick")
    target = directory / "yardstick.o"
    code = [f"--generate-code=arch=compute_{gpu},code=sm_{gpu}" for gpu in FOR_COMPARISON]
    command = ["nvcc", *NVCC_FLAGS, WARNINGS, *code, "-c", str(PER_CHANNEL), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return read(target, directory)


def find(functions: list[Function], gpu: int, mangled: str) -> Function:
    """The one kernel of a GPU with this in its mangled name."""
    (found,) = (f for f in functions if f.gpu == gpu and mangled in f.name)
    return found


@pytest.mark.parametrize("gpu", GPUS)
def test_no_kernel_spills_registers(kernels: list[Function], gpu: int) -> None:
    spills = [function.uses_local_memory() for function in kernels if function.gpu == gpu]

    assert spills == [False] * 12


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


@pytest.mark.parametrize("gpu", GPUS)
def test_no_kernel_of_gradients_spills_registers(gradients: list[Function], gpu: int) -> None:
    spills = [function.uses_local_memory() for function in gradients if function.gpu == gpu]

    assert spills == [False] * 10


# The first GPUs with vector atomics are of compute capability 9.
@pytest.mark.parametrize(("gpu", "numbers_at_once"), [(gpu, 4 if gpu >= 90 else 1) for gpu in GPUS])
@pytest.mark.parametrize("dtype", TYPES)
def test_four_numbers_are_added_at_once_where_the_gpu_can(
    gradients: list[Function], dtype: str, gpu: int, numbers_at_once: int
) -> None:
    function = find(gradients, gpu, f"kernelI{TYPES[dtype]}Li4E")

    vectors = function.count(r"\bREDG?\.E\.ADD\.F32x4\b")
    numbers = function.count(r"\bREDG?\.E\.ADD\.F32\.")
    assert (vectors, numbers) == ((0, 32) if numbers_at_once == 1 else (8, 0))


JUMP = r"\b(BRA|BRX|JMP|JMX|CALL|RET|BSSY|BSYNC|WARPSYNC\.\w+)\b"
