"""Runs a program with TensorRT-RTX, whose builder needs no GPU.

Its ONNX parser opens a library by a name that the package does not give it, and ends the process
if there is none. So the program gets a process of its own, with a link of that name on its path.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_with_tensorrt_rtx(program: str, directory: Path, *arguments: str) -> str:
    """What the program prints; `directory` takes the link. Fails where the program does."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    library = Path(spec.submodule_search_locations[0]) / "libtensorrt_rtx.so.1"
    link = directory / "libtensorrt_rtx.so"
    if not link.exists():
        link.symlink_to(library)
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": str(directory), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
