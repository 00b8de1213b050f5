"""Engines of plans that were never built, and batches for them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bundle.manifest import Manifest
from bundle.preprocess import pad_batch
from bundle.tensorrt_plan import BatchShape, ShapeProfile
from engines.gpu.cuda import load_cuda
from engines.gpu.tensorrt_engine import TensorRTEngine
from tests.fake_tensorrt import FakeTensorRT

LANDSCAPE = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(2, 64, 96), max=BatchShape(4, 64, 128)
)
PORTRAIT = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(2, 96, 64), max=BatchShape(4, 128, 64)
)
SINGLE = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(1, 64, 96), max=BatchShape(1, 128, 128)
)


def load(
    directory: Path, trt: FakeTensorRT, *, max_graphs: int = 4, device: int = 0
) -> TensorRTEngine:
    manifest = Manifest.load(directory)
    assert manifest.tensorrt is not None
    plan = (directory / "model.plan").read_bytes()
    profiles = manifest.tensorrt.profiles
    return TensorRTEngine(
        manifest, plan, profiles=profiles, trt=trt, cuda=load_cuda(device), max_graphs=max_graphs
    )


def picture(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with a red and a green box at random places."""
    image = np.full((height, width, 3), 40, np.uint8)
    for channel in (0, 1):
        top, left = np.random.randint(0, height // 2), np.random.randint(0, width // 2)
        image[top : top + height // 3, left : left + width // 3] = 0
        image[top : top + height // 3, left : left + width // 3, channel] = 150 + 50 * channel
    return image


def batch_of(*sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return pad_batch([picture(*size) for size in sizes])


def assert_alike(found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
