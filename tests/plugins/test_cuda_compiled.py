"""What nvcc makes of the kernels: registers, spills, widths of loads, numbers of instructions."""

import os
import re
import shutil
import subprocess
from collections import deque
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


def count(pattern: str, instructions: list[str]) -> int:
    """How many instructions match."""
    return sum(re.search(pattern, instruction) is not None for instruction in instructions)


class Function(NamedTuple):
    """A kernel for a GPU: what cuobjdump says of it, its instructions, and labels among them."""

    gpu: int
    name: str
    registers: int
    lines: list[str]

    def count(self, pattern: str) -> int:
        """How many lines match."""
        return count(pattern, self.lines)

    def shortest_way(self) -> list[str]:
        """The fewest instructions from the first to an EXIT, past what is only done when needed."""
        came_from = {0: 0}
        queue = deque(came_from)
        while not self.lines[queue[0]].startswith("EXIT"):
            place = queue.popleft()
            line = self.lines[place]
            jump = re.search(r"\bBRA\b.*`\((\S+)\)", line)
            following = [self.lines.index(f"{jump[1]}:")] if jump else []
            if not line.startswith("BRA"):  # which, without a condition, always jumps
                following.append(place + 1)
            for new in set(following) - set(came_from):
                came_from[new] = place
                queue.append(new)
        way = [place := queue[0]]
        while place:
            way.append(place := came_from[place])
        return [self.lines[place] for place in reversed(way) if self.lines[place][-1] != ":"]

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
        Function(gpu_of(cubin), name, registers[gpu_of(cubin), name], lines)
        for cubin, kernels in parts
        for name, lines in kernels.items()
    ]


def gpu_of(cubin: Path) -> int:
    """The compute capability in the name that cuobjdump gives a file: library.3.sm_90.cubin."""
    return int(cubin.stem.rpartition("sm_")[2])


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The lines of every kernel, up to its last EXIT; what follows is padding."""
    listing = subprocess.run(
        [str(tool("nvdisasm")), "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    kernels = {}
    for section in re.split(r"\.section\s+\.text\.", listing)[1:]:
        pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);|^(\.L_x_\d+:)"
        lines = [a or b for a, b in re.findall(pattern, section, flags=re.M)]
        last = max(i for i, line in enumerate(lines) if re.search(r"\bEXIT\b", line))
        kernels[section.split(",")[0]] = lines[: last + 1]
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

    loads = count(r"\bLDG\.E\.128\b", function.shortest_way())
    assert loads == 4 * samples_of_a_thread  # four pixels each


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("dtype", "products"), [("float32", 0), ("float16", 32), ("bfloat16", 0)])
def test_the_fast_path_sums_float16_on_tensor_cores(
    kernels, dtype: str, products: int, gpu: int
) -> None:
    function = find(kernels, gpu, f"fast6kernelI{TYPES[dtype]}Li2E")

    assert count(r"\bHMMA\.1688\.F32\b", function.shortest_way()) == products


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
    """Neither kernel has a loop on its way, so that a warp executes each of these once.

    The fast path's only jump is past what it does where a sum is not finite. A warp of it does 2
    queries and heads, 32 samples; a warp of the yardstick, a thread a channel of 32, does one.
    """
    fast = find(kernels, gpu, f"fast6kernelI{TYPES[dtype]}Li{width}E")
    slow = find(yardstick, gpu, f"perChannelKernelI{TYPES[dtype]}Li{width}E")

    fast_way, slow_way = fast.shortest_way(), slow.shortest_way()
    assert (count(JUMP, fast_way), count(JUMP, slow_way)) == (1, 0)
    assert len(fast_way) / (2 * SAMPLES) <= len(slow_way) / SAMPLES / 4


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


JUMP = r"\b(BRA|BRX|JMP|JMX|CALL|RET|WARPSYNC\.\w+)\b"
