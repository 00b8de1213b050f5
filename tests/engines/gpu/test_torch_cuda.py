"""The engine torch-cuda, on a CPU: the same program, with the CPU's kernels and no CUDA graphs."""

import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.layout import GRAPH_FILES, HALF_FORM, PLUGIN_FORM
from bundle.manifest import Bundle, Precision
from bundle.preprocess import pad_batch
from bundle.tensorrt_plan import BatchShape, ShapeProfile
from engines.base import Engine, EngineFailure
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu import torch_cuda
from engines.gpu.torch_cuda import TorchEngine, open_on_cpu
from engines.gpu.torch_device import Cpu
from engines.guard import guard
from engines.load import GpuOptions, open_engine
from engines.self_check import require_known_answers
from export.judge.verify import difference
from export.precisions import Materials
from export.recipe import write_bundle
from plugins import cpu_kernels
from tests.engines.gpu.late_device import LateDevice

pytestmark = pytest.mark.skipif(
    not cpu_kernels.instruction_sets(), reason="no native kernels: there was no C++ compiler"
)
DEMO = Path(__file__).parents[3] / "bundles" / "demo"
SMALL = ShapeProfile(
    min=BatchShape(1, 32, 32), opt=BatchShape(1, 64, 96), max=BatchShape(2, 128, 160)
)


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return Bundle.load(DEMO)


@pytest.fixture(scope="module")
def oracle(demo: Bundle) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(demo, threads=1)


@pytest.fixture(scope="module")
def engine(demo: Bundle) -> Iterator[Engine]:
    engine = guard(open_on_cpu(demo), demo.manifest)
    yield engine
    engine.close()


@pytest.fixture
def in_precision(demo: Bundle, tmp_path: Path) -> Callable[[Precision], Bundle]:
    """The demo as it is exported in a precision, without a GPU."""

    def write(precision: Precision) -> Bundle:
        return write_bundle(Materials(demo), tmp_path / precision, precision=precision).save()

    return write


def batch_of(*sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return pad_batch([np.random.randint(0, 256, (*size, 3), np.uint8) for size in sizes])


@pytest.mark.parametrize(
    "sizes", [[(128, 160)], [(97, 131)], [(128, 96), (64, 150), (33, 32)]], ids=str
)
def test_it_finds_what_onnx_runtime_finds(
    engine: Engine, oracle: OnnxRuntimeEngine, sizes: list[tuple[int, int]]
) -> None:
    batch = batch_of(*sizes)

    found, expected = engine.run(*batch), oracle.run(*batch)

    assert [part.dtype for part in found] == [part.dtype for part in expected]
    apart = difference(expected, found)
    assert (apart.score_error < 1e-4, apart.box_error < 1e-5) == (True, True), apart


def test_it_gives_the_known_answers_and_says_what_it_is(engine: Engine, demo: Bundle) -> None:
    outcomes, _ = require_known_answers(engine, demo)

    assert outcomes
    assert engine.info[:4] == ("torch-cuda", "fp32", "fp32", PLUGIN_FORM)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_the_known_answers(
    in_precision: Callable[[Precision], Bundle], precision: Precision
) -> None:
    bundle = in_precision(precision)
    engine = open_on_cpu(bundle)

    outcomes, _ = require_known_answers(engine, bundle, max_batch_size=1)

    assert engine.info[:4] == ("torch-cuda", precision, precision, HALF_FORM)
    assert max(outcome.errors.score for outcome in outcomes) > 1e-5  # float32 was off by less


def test_a_precision_without_its_graph_is_replaced_and_said(
    demo: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_on_cpu(demo.with_manifest(precision="bf16"))

    assert engine.info.precision == "fp32"
    assert caplog.messages == ["the bundle has no graph in bf16 and runs in fp32; export it again"]


def test_int8_is_refused(demo: Bundle) -> None:
    with pytest.raises(ValueError, match="torch-cuda does not compute in int8; export with"):
        open_on_cpu(demo.with_manifest(precision="int8"))


def test_a_graph_with_an_unknown_operator_is_refused_by_name(demo: Bundle, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    standard = (DEMO / demo.manifest.graphs["standard"]).read_bytes()
    (tmp_path / "demo" / GRAPH_FILES[PLUGIN_FORM]).write_bytes(standard)

    with pytest.raises(ValueError, match=r"unknown operators .*'GridSample'"):
        open_on_cpu(Bundle(tmp_path / "demo", demo.manifest))


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "missing"])
def test_a_file_that_is_no_graph_is_named(
    demo: Bundle, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / GRAPH_FILES[PLUGIN_FORM]
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ValueError, match=re.escape(str(path))):
        open_on_cpu(Bundle(tmp_path, demo.manifest))


def test_a_bundle_without_the_graph_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a graph 'plugin', got \['standard'\]"):
        open_on_cpu(Bundle.load(toy_bundle))


def test_a_batch_that_is_too_large_is_refused_and_the_next_one_runs(demo: Bundle) -> None:
    engine = TorchEngine(demo, Cpu(), profiles=(SMALL,), max_graphs=0)

    with pytest.raises(EngineFailure, match=r"at most one of \[\(2, 128, 160\)\], got \(3, 64, 6"):
        engine.run(*batch_of((64, 64), (64, 64), (64, 64)))

    assert len(engine.run(*batch_of((64, 64))).scores) == 1


def test_what_torch_raises_is_an_engine_failure_and_the_next_batch_runs(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(demo, Cpu(), profiles=(SMALL,), max_graphs=0)

    with monkeypatch.context() as broken:
        broken.setattr(cpu_kernels, "forward", out_of_memory)
        with pytest.raises(EngineFailure, match=r"PyTorch failed on \(1, 64, 64, 3\): no memory"):
            engine.run(*batch_of((64, 64)))

    assert len(engine.run(*batch_of((64, 64))).scores) == 1


@pytest.fixture
def late() -> LateDevice:
    return LateDevice()


@pytest.fixture
def late_engine(demo: Bundle, late: LateDevice) -> Iterator[TorchEngine]:
    engine = TorchEngine(demo, late, profiles=(SMALL,), max_graphs=0)
    yield engine
    late.gate.open()
    engine.close()
    assert late.is_idle


def test_nothing_is_read_before_it_is_there_nor_overwritten_before_it_is_read(
    engine: Engine, late_engine: TorchEngine
) -> None:
    batches = [batch_of((64, 96)), batch_of((96, 64)), batch_of((64, 96), (80, 96))] * 2

    for batch in batches:
        for found, right in zip(late_engine.run(*batch), engine.run(*batch), strict=True):
            np.testing.assert_array_equal(found, right)


def test_a_batch_is_brought_to_the_device_while_another_one_runs(
    engine: Engine, late_engine: TorchEngine, late: LateDevice
) -> None:
    batches = [batch_of((64, 96)), batch_of((96, 64)), batch_of((64, 64))]
    late.gate.shut()
    with ThreadPoolExecutor(len(batches)) as pool:
        runs = [pool.submit(late_engine.run, *batch) for batch in batches]
        for _ in range(late_engine.runs_at_once):
            late.gate.wait_for_arrival()

        assert late.num_uploads == late_engine.runs_at_once == 2
        late.gate.open()
        outputs = [run.result() for run in runs]

    for output, batch in zip(outputs, batches, strict=True):
        for found, right in zip(output, engine.run(*batch), strict=True):
            np.testing.assert_array_equal(found, right)
    assert len(late.launchers - {threading.get_ident()}) == 1  # this one loaded the weights


def test_buffers_of_a_batch_that_failed_are_used_again_only_when_its_copies_have_ended(
    late_engine: TorchEngine, late: LateDevice
) -> None:
    late.is_broken = True
    for _ in range(late_engine.runs_at_once + 1):
        with pytest.raises(EngineFailure, match="cannot compute"):
            late_engine.run(*batch_of((64, 64)))

        assert late.is_idle


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("no memory")


def test_without_a_gpu_it_says_what_to_do(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ValueError, match=r"PyTorch .* finds no GPU; check `nvidia-smi`, install"):
        open_engine(demo, engine="torch-cuda")


def test_without_kernels_for_the_gpu_it_says_what_to_do(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch_cuda, "gpu_kernels", lambda: None)

    with pytest.raises(
        ValueError, match=r"libms_deform_attn_cuda\.so .* or Triton .*`make plugins`"
    ):
        open_engine(demo, engine="torch-cuda")


def test_a_gpu_that_does_not_exist_is_refused(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(ValueError, match=r"expected DETR_DEVICE below 2, .*, got 2; CUDA_VISIBLE"):
        open_engine(demo, engine="torch-cuda", gpu=GpuOptions(device=2))


@pytest.mark.parametrize("package", ["torch", "onnx_ir"])
def test_without_a_package_it_says_how_to_install_it(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    loaded = [name for name in sys.modules if name.startswith("engines.gpu.torch_")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ValueError, match=r"torch-cuda cannot be loaded .*--group torch-cuda"):
        open_engine(demo, engine="torch-cuda")
