"""python -m plugins.build: compile the native libraries into build/plugins/.

It takes seconds for a CPU, and one to two CPU-minutes with nvcc, which compiles for eight GPUs.

Without a C++ compiler, nothing is built and everything runs on standard operators.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from plugins import library

PLUGINS = Path(__file__).parent
OP = PLUGINS / "ms_deform_attn"
CORE = OP / "core"
CUDA_TOOLS = Path("/usr/local/cuda/bin")
NO_NVCC = (
    "no nvcc: nothing is built for GPUs, so PyTorch runs kernels in Triton, and TensorRT none; it "
    "comes with the CUDA toolkit, and NVCC=/path/to/nvcc names it"
)

FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"),
)

NVCC_FLAGS = (
    *("-std=c++17", "-O3", "--threads=0"),
    "--compiler-options=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
)

# Compute capabilities to generate machine code for; it also runs on later ones of the same major.
GPUS = (75, 80, 86, 89, 90, 100, 110, 120)

# Extra flags of single files: their instructions are only used if the CPU has them.
X86_FLAGS = {
    "kernel_avx2.cpp": ("-mavx2", "-mfma"),
    "kernel_avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}


@dataclass(frozen=True)
class Library:
    """One shared library: its file name, sources, and what a binding needs from its framework.

    `versions` are headers of the framework that change with its version. If `compiler` is None, it
    is the C++ compiler. Only files in bindings/ get `binding_flags`, so that libraries can share
    the objects of all other files.
    """

    name: str
    sources: tuple[Path, ...]
    compiler: str | None = None
    flags: tuple[str, ...] = FLAGS
    binding_flags: tuple[str, ...] = ()
    versions: tuple[Path, ...] = ()
    link_flags: tuple[str, ...] = ("-pthread",)


def cpu_kernels() -> tuple[Path, ...]:
    """The sources of the CPU kernels, for every library that runs them."""
    return tuple(sorted(CORE.glob("*.cpp")))


def has_gpu() -> bool:
    """Whether there is a driver for NVIDIA GPUs, in Linux or around it (WSL)."""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/dxg"))


def cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, or where the toolkit's installer puts it."""
    return shutil.which(name) or shutil.which(str(CUDA_TOOLS / name))


def nvcc() -> str | None:
    """NVIDIA's compiler, or what NVCC names instead."""
    named = os.environ.get("NVCC")
    return shutil.which(named) if named else cuda_tool("nvcc")


def libraries(*, are_for_gpus: bool = True) -> Iterator[Library]:
    """Every library that can be built on this machine, also for GPUs that others have."""
    yield Library("libms_deform_attn.so", (OP / "bindings" / "c_api.cpp", *cpu_kernels()))
    yield from _openvino_extension()
    if are_for_gpus:
        yield from _for_gpus()


def _openvino_extension() -> Iterator[Library]:
    """The op for the installed OpenVINO, built against the headers and libraries in its wheel."""
    package = importlib.util.find_spec("openvino")
    if package is None or package.origin is None:
        return
    root = Path(package.origin).parent
    runtime = [*root.glob("libs/libopenvino.so.*"), *root.glob("libs/libtbb.so.*")]
    if len(runtime) != 2 or not (root / "include").is_dir():  # not a wheel for Linux
        return
    yield Library(
        library.openvino_extension(),
        (OP / "bindings" / "openvino_extension.cpp", *cpu_kernels()),
        binding_flags=("-isystem", str(root / "include")),
        # Its code must outlive the last node of a graph, which may outlive the runtime's core.
        link_flags=("-pthread", "-Wl,-z,nodelete,-z,defs", *map(str, runtime)),
    )


def _for_gpus() -> Iterator[Library]:
    """The op for PyTorch, and for TensorRT 10 and 11 if its headers are installed; need nvcc."""
    compiler = nvcc()
    if compiler is None:
        if has_gpu() and not os.environ.get("NVCC"):
            print(NO_NVCC)
        return
    listing = [compiler, "--list-gpu-code"]
    known = subprocess.run(listing, capture_output=True, text=True, check=True)
    flags = (*NVCC_FLAGS, *gpu_code(known.stdout.split()))
    link_flags = ("--cudart=static",)
    yield Library(
        library.CUDA_KERNELS,
        (OP / "bindings" / "cuda_c_api.cpp", *sorted(CORE.glob("*.cu"))),
        compiler=compiler,
        flags=flags,
        link_flags=link_flags,
    )
    headers = tensorrt_headers()
    if headers is not None:
        yield Library(
            library.TENSORRT_PLUGIN,
            (*sorted((OP / "bindings").glob("tensorrt_*.cpp")), CORE / "kernel_cuda.cu"),
            compiler=compiler,
            flags=flags,
            binding_flags=("-isystem", str(headers)),
            versions=tuple(headers.glob("NvInferVersion.h")),
            link_flags=link_flags,
        )


def gpu_code(known: Collection[str]) -> list[str]:
    """Flags for the code of every GPU, for an nvcc that knows these ("sm_90", ...).

    For a GPU without machine code, because it is newer than all others or unknown to this nvcc, the
    portable code of the next older one is compiled when the library is loaded.
    """
    gpus = [gpu for gpu in GPUS if f"sm_{gpu}" in known]
    unknown = [gpu for gpu in GPUS if gpu not in gpus and gpu > gpus[0]]
    portable = {max(gpu for gpu in gpus if gpu < other) for other in unknown} | {gpus[-1]}
    return [
        *(f"--generate-code=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus),
        *(f"--generate-code=arch=compute_{gpu},code=compute_{gpu}" for gpu in sorted(portable)),
    ]


def tensorrt_headers() -> Path | None:
    """TensorRT's headers: in TENSORRT_INCLUDE_DIR, or in the system's folders.

    Otherwise those of 10.14 in the package kernel-lens; plugins have the same interface in 11.
    """
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    if named:
        return Path(named)
    folders = [Path("/usr/include"), Path(f"/usr/include/{platform.machine()}-linux-gnu")]
    package = importlib.util.find_spec("kernel_lens")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "include" / "tensorrt")
    return next((folder for folder in folders if (folder / "NvInferRuntime.h").exists()), None)


def build(compiler: str, wanted: Library, *, objects: Path) -> bool:
    """Build a library unless it is up to date; returns whether it was built.

    Args:
        compiler: for C++, if the library names no other.
        objects: folder for compiled files. A file compiled by the same command is used again, so no
            source may have changed since.

    Raises:
        RuntimeError: the compiler failed; has its message.
    """
    compiler = wanted.compiler or compiler
    commands = [_command(compiler, wanted, source) for source in wanted.sources]
    key = _key([*commands, list(wanted.link_flags)], (*wanted.sources, *wanted.versions))
    target, stamp = library.FOLDER / wanted.name, library.FOLDER / f"{wanted.name}.key"
    if target.exists() and stamp.exists() and stamp.read_text() == key:
        return False
    if wanted.compiler is not None:
        print(f"{wanted.name}: {compiler} compiles for GPUs; NVCC=none does without", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda command: _compile(command, objects), commands))
    made = objects / wanted.name
    linked = ["-o", str(made), *map(str, compiled), *wanted.link_flags]
    _run([compiler, "-shared", *linked])
    os.replace(made, target)
    stamp.write_text(key)
    return True


def _command(compiler: str, wanted: Library, source: Path) -> list[str]:
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    own = X86_FLAGS.get(source.name, ()) if is_x86 else ()
    binding = wanted.binding_flags if source.parent.name == "bindings" else ()
    return [compiler, *wanted.flags, *binding, *own, "-c", str(source)]


def _compile(command: list[str], objects: Path) -> Path:
    target = objects / f"{hashlib.sha256(repr(command).encode()).hexdigest()}.o"
    if not target.exists():
        _run([*command, "-o", str(target)])
    return target


def _key(commands: list[list[str]], sources: tuple[Path, ...]) -> str:
    """A digest of everything that the library is made from."""
    version = subprocess.run([commands[0][0], "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr(commands).encode() + version)
    for path in sorted({*sources, *OP.rglob("*.h")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


def main() -> int:
    """Build everything, with a line per library; returns 1 if a compiler fails."""
    parser = argparse.ArgumentParser(prog="python -m plugins.build", description=__doc__)
    parser.add_argument(
        "--to-serve",
        action="store_true",
        help="leave out libraries for GPUs if this machine has no driver for one",
    )
    are_for_gpus = not parser.parse_args().to_serve or has_gpu()
    library.FOLDER.mkdir(parents=True, exist_ok=True)  # images copy it even if it is empty
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        print(f"no C++ compiler ({compiler}): nothing native is built; standard operators are used")
        return 0
    with TemporaryDirectory(prefix="objects.", dir=library.FOLDER) as objects:
        for wanted in libraries(are_for_gpus=are_for_gpus):
            try:
                made = build(compiler, wanted, objects=Path(objects))
            except RuntimeError as error:
                variable = "NVCC" if wanted.compiler else "CXX"
                without = f"{variable}=none builds without it"
                print(f"{wanted.name}: not built; {without}\n{error}", file=sys.stderr)
                return 1
            print(f"{wanted.name}: {'built' if made else 'up to date'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
