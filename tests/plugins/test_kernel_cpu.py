"""The CPU kernels as C++: without warnings, under the sanitizers, and safe to link together."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugins.build import CORE, OP, X86_FLAGS, cpu_kernels
from tests.ops.cases import CASES, PYRAMID, OpCase

COMPILER = os.environ.get("CXX") or "g++"
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", "-fno-trapping-math")
# GCC 12 takes its own intrinsics of AVX-512 for variables that are used before they are set.
GCC_12 = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
DRIVER = Path(__file__).parent / "run_cpu_cases.cpp"

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})"
)


def compiled(directory: Path, flags: tuple[str, ...], sources: tuple[Path, ...]) -> list[Path]:
    """The objects of some sources."""

    def compile_one(source: Path) -> Path:
        target = directory / f"{source.stem}.o"
        own = (*X86_FLAGS.get(source.name, ()), *GCC_12)
        command = [COMPILER, *FLAGS, *flags, *own, "-c", str(source), "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def sizes(case: OpCase) -> str:
    """A case as the program reads it."""
    numbers = (case.batch, case.queries, case.heads, case.head_dim, case.points)
    shapes = (side for shape in case.shapes for side in shape)
    return " ".join(map(str, (*numbers, case.reference_width, *shapes)))


# What the sanitizers watch: the table, and a call that is large enough for more than one thread.
CALLS = (*CASES, OpCase("two threads", heads=8, head_dim=32, points=4, queries=150, shapes=PYRAMID))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizers", "calls"),
    # Only a call on several threads can have a race.
    [("address,undefined", CALLS), ("thread", CALLS[-1:])],
    ids=["address,undefined", "thread"],
)
def test_sanitizers_find_nothing_in_any_case(
    sanitizers: str, calls: tuple[OpCase, ...], tmp_path: Path
) -> None:
    # Without inlining or optimisation, which would take minutes for so many checks.
    flags = ("-O0", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-DDETR_KERNEL=")
    sources = (DRIVER, OP / "bindings" / "c_api.cpp", *cpu_kernels())
    objects = compiled(tmp_path, flags, sources)
    program = tmp_path / "run_cpu_cases"
    subprocess.run([COMPILER, *flags, "-pthread", *objects, "-o", program], check=True)

    result = subprocess.run(
        [program], input="\n".join(map(sizes, calls)), capture_output=True, text=True
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines() == [f"good {sizes(case)}" for case in calls]


def test_no_function_is_shared_between_instruction_sets(tmp_path: Path) -> None:
    kernels = tuple(CORE / f"kernel_{name}.cpp" for name in ("portable", "avx2", "avx512"))
    objects = compiled(tmp_path, ("-O0",), kernels)

    weak = []
    for path in objects:
        symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        weak.append({line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "WV"})

    assert all(weak)
    assert not weak[0] & weak[1]
    assert not weak[0] & weak[2]
    assert not weak[1] & weak[2]
