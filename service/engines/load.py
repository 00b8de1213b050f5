"""From a bundle's directory to the engine that runs it."""

from pathlib import Path

from bundle.manifest import Manifest
from service.engines.base import Engine


def open_engine(directory: Path, *, threads: int | None = None) -> tuple[Manifest, Engine]:
    """Check the bundle and load its graph.

    Args:
        directory: of the bundle.
        threads: of one inference; None takes one per core.

    Raises:
        ValueError: the bundle is missing, damaged or does not load; says what to run.
    """
    manifest = Manifest.load(directory)
    from service.engines.onnxruntime_engine import OnnxRuntimeEngine

    return manifest, OnnxRuntimeEngine(directory, manifest, threads=threads)
