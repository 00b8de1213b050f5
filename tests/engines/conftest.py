"""A machine with a GPU, as far as the engines can tell."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.manifest import Manifest
from bundle.tensorrt_plan import ShapeProfile, TensorRTPlan, default_profiles
from engines.gpu.cuda import load_cuda
from engines.gpu.tensorrt_runtime import fingerprint_of, load_tensorrt
from engines.gpu.tensorrt_tensors import dims_of
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT
from tests.toy_bundle import make_toy_bundle


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The CUDA runtime that the service finds."""
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """The module `tensorrt` that the service finds; nothing may have been destroyed too early."""
    fake = FakeTensorRT(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    yield fake
    assert fake.misuses == []


def built_shapes(
    manifest: Manifest, profiles: tuple[ShapeProfile, ...]
) -> list[dict[str, list[tuple[int, ...]]]]:
    """The profiles as a plan holds them."""
    return [
        {
            spec.name: [dims_of(spec, size) for size in (profile.min, profile.opt, profile.max)]
            for spec in manifest.inputs
        }
        for profile in profiles
    ]


@pytest.fixture
def planned(tmp_path: Path, trt: FakeTensorRT) -> Callable[..., Path]:
    """Makes a toy bundle with a plan for this machine; `changes` are to the content of the plan."""

    def planned(
        profiles: tuple[ShapeProfile, ...] | None = None, graph: str = "standard", **changes: object
    ) -> Path:
        directory = tmp_path / "planned"
        manifest = make_toy_bundle(directory)
        if profiles is None:
            profiles = default_profiles(manifest.preprocess)
        content = {"profiles": built_shapes(manifest, profiles)} | changes
        (directory / "model.plan").write_bytes(trt.make_plan(directory / "model.onnx", **content))
        fingerprint = fingerprint_of(load_tensorrt(), load_cuda().device(), plugin=None)
        plan = TensorRTPlan(
            file="model.plan", graph=graph, fingerprint=fingerprint, profiles=profiles
        )
        manifest.model_copy(update={"tensorrt": plan}).save(directory)
        return directory

    return planned
