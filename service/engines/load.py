"""From a bundle's directory to the engine that runs it."""

from pathlib import Path
from typing import assert_never

from bundle.manifest import Manifest
from service.engines.base import Engine


def open_engine(directory: Path, *, threads: int | None = None) -> tuple[Manifest, Engine]:
    """Check the bundle and load its graph into the runtime that it was made for.

    Args:
        directory: of the bundle.
        threads: of one inference; None takes one per core.

    Raises:
        ValueError: the bundle is missing, damaged or does not load; says what to run.
    """
    manifest = Manifest.load(directory)
    if manifest.runtime == "onnxruntime":
        from service.engines.onnxruntime_engine import OnnxRuntimeEngine

        return manifest, OnnxRuntimeEngine(directory, manifest, threads=threads)
    assert_never(manifest.runtime)
