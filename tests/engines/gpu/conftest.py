"""A bundle with a plan, its engine, and ONNX Runtime to compare it with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.manifest import Bundle
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.tensorrt_engine import TensorRTEngine
from tests.engines.gpu.planned import LANDSCAPE, PORTRAIT, load
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT


@pytest.fixture
def bundle(planned: Callable[..., Path]) -> Path:
    return planned((LANDSCAPE, PORTRAIT))


@pytest.fixture
def engine(bundle: Path, trt: FakeTensorRT, cuda: FakeCuda) -> Iterator[TensorRTEngine]:
    engine = load(bundle, trt)
    yield engine
    engine.close()
    assert cuda.leaks() == []


@pytest.fixture
def oracle(bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(Bundle.load(bundle), threads=1)
