"""The Triton kernels compiled for GPUs that are not here: what the assembler says of them."""

import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.triton_kernels import TritonKernels
from tests.ops.cases import OpCase

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed; `make triton` does it"
)

# As the model at its published size calls them.
CONSTANTS = {
    **{"NUM_HEADS": 8, "HEAD_DIM": 32, "NUM_LEVELS": 4, "NUM_POINTS": 4},
    **{"REFERENCE_DIM": 4, "SCALE": 0.125, "BLOCK_Q": 4, "BLOCK_S": 16, "BLOCK_D": 32},
    **{"whole_ptr": None, "scale_ptr": None, "IS_DETERMINISTIC": False, "WITH_REFERENCE": True},
}
IN_FLOAT32 = ("reference_ptr", "value_gradient_ptr", "reference_gradient_ptr")


@pytest.fixture(scope="module", autouse=True)
def _no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def type_of(argument: str) -> str | tuple[str, ...]:
    """How Triton calls the type of a kernel's argument."""
    if argument in CONSTANTS:
        return "constexpr"
    if argument == "shapes":
        return ("fp32",) * 8
    if argument.endswith("_ptr"):
        return "*fp32" if argument in IN_FLOAT32 else "*bf16"
    return "i32"


@cache
def compiled(name: str, capability: int) -> dict[str, Any]:
    """What Triton made of a kernel, by kind: "ptx", "cubin", ..."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from plugins import triton_source

    kernel = getattr(triton_source, name)
    types = {argument: type_of(argument) for argument in kernel.arg_names}
    places = {argument: (place,) for place, argument in enumerate(types)}
    constants = {places[argument]: CONSTANTS[argument] for argument in types.keys() & CONSTANTS}
    aligned = {
        places[argument]: [["tt.divisibility", 16]]
        for argument in types
        if str(types[argument]).startswith("*")
    }
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    target = GPUTarget("cuda", capability, 32)
    made: dict[str, Any] = triton.compile(source, target=target, options=options).asm
    return made


def usage(cubin: bytes, directory: Path) -> str:
    """The registers and the local memory that the machine code takes."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = directory / "kernel.cubin"
    file.write_bytes(cubin)
    command = [str(tool), "-res-usage", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("forward_kernel", 75),
        ("forward_kernel", 90),
        *(("backward_kernel", capability) for capability in (75, 80, 90, 100, 120)),
    ],
)
def test_a_kernel_compiles_and_spills_nothing(name: str, capability: int, tmp_path: Path) -> None:
    taken = usage(compiled(name, capability)["cubin"], tmp_path)

    assert " STACK:0 " in taken
    assert " LOCAL:0 " in taken


@pytest.mark.slow
def test_sixteen_bytes_are_loaded_and_four_numbers_added_at_once() -> None:
    code = compiled("backward_kernel", 90)["ptx"]

    assert "ld.global.v4.b32" in code
    assert "red.global.gpu.relaxed.add.v4.f32" in code
    assert "red.global.gpu.relaxed.add.f32" not in code


class Unlaunched:
    """A kernel that remembers what it would be compiled for, instead of running."""

    def __init__(self, kernel: Any) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        backend = make_backend(GPUTarget("cuda", 90, 32))
        self._bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        self.variants: list[str] = []

    def __getitem__(self, grid: tuple[int]) -> "Unlaunched":
        return self

    def __call__(self, *arguments: Any, num_warps: int, **others: Any) -> None:
        self.variants.append(str(self._bind(*arguments, **others)[1]))


def test_images_of_every_size_run_the_same_code() -> None:
    """Triton makes code of its own for integers that are 1 or divisible by 16, also in tuples."""
    from plugins import triton_source

    forward, backward = map(
        Unlaunched, (triton_source.forward_kernel, triton_source.backward_kernel)
    )
    source: Any = SimpleNamespace(forward_kernel=forward, backward_kernel=backward)
    kernels = TritonKernels(source, device_type="cpu")

    for shapes in (((17, 19), (3, 5)), ((16, 32), (1, 1)), ((16, 1), (48, 2))):
        value, _, *others = OpCase("a size", queries=33, shapes=shapes).inputs()
        sides = [side for shape in shapes for side in shape]
        output = kernels.forward(value, sides, *others)
        kernels.backward(output, value, sides, *others)

    for kernel in (forward, backward):
        assert len(kernel.variants) == 3
        assert len(set(kernel.variants)) == 1
