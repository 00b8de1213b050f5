"""What OpenVINO does beyond what every engine does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from bundle.manifest import Bundle, Manifest
from bundle.postprocess import RawOutput
from bundle.preprocess import decode_image, pad_batch, prepare
from engines.base import EngineFailure
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.cpu.openvino_engine import OpenVinoEngine
from engines.cpu.openvino_streams import RUNTIME_ERRORS
from engines.self_check import require_known_answers
from export.judge.verify import difference
from plugins import library

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "bundles" / "demo"
FORMS = ("standard", "plugin")
Batch = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo bundle, whose cache tests may fill."""
    directory = tmp_path_factory.mktemp("bundles") / "demo"
    return Path(shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache")))


@pytest.fixture(scope="module")
def manifest(demo: Path) -> Manifest:
    return Manifest.load(demo)


@pytest.fixture(scope="module")
def batches(demo: Path, manifest: Manifest) -> dict[str, Batch]:
    """Batches of the demo's samples: a square, landscapes, padded ones, and eight at once."""
    photos = [decode_image(path.read_bytes()) for path in sorted(demo.glob("samples/*"))]
    wide = [np.ascontiguousarray(photo[: photo.shape[0] * 2 // 3]) for photo in photos]
    tall = [np.ascontiguousarray(photo[:, : photo.shape[1] * 3 // 4]) for photo in photos]

    def batch(*images: np.ndarray) -> Batch:
        resized = [prepare(image, manifest.preprocess)[0] for image in images]
        return pad_batch(resized, manifest.preprocess.min_side)

    return {
        "one": batch(photos[0]),
        "one wide": batch(wide[1]),
        "one tall": batch(tall[2]),
        "two, padded": batch(wide[0], tall[3]),
        "three": batch(photos[1], wide[2], tall[0]),
        "eight": batch(*photos, *wide),
    }


@pytest.fixture(scope="module")
def oracle(demo: Path, manifest: Manifest, batches: dict[str, Batch]) -> dict[str, RawOutput]:
    """What ONNX Runtime answers."""
    engine = OnnxRuntimeEngine(Bundle(demo, manifest), threads=1)
    return {name: engine.run(*batch) for name, batch in batches.items()}


@pytest.fixture
def open_demo(demo: Path, manifest: Manifest) -> Callable[..., OpenVinoEngine]:
    def open_demo(graph: str = "standard", **options: Any) -> OpenVinoEngine:
        if graph == "plugin" and library.find(library.openvino_extension()) is None:
            pytest.skip("the OpenVINO extension is not built: no C++ compiler")
        return OpenVinoEngine(Bundle(demo, manifest), graph=graph, **options)

    return open_demo


def agrees(found: RawOutput, expected: RawOutput) -> bool:
    apart = difference(expected, found)
    return apart.score_error <= 1e-4 and apart.box_error <= 1e-5 and apart.num_at_cut == 0


@pytest.mark.parametrize("graph", FORMS)
@pytest.mark.parametrize(("threads", "mode"), [(1, "latency"), (2, "latency"), (2, "throughput")])
def test_openvino_answers_what_onnx_runtime_answers(
    open_demo: Callable[..., OpenVinoEngine],
    batches: dict[str, Batch],
    oracle: dict[str, RawOutput],
    graph: str,
    threads: int,
    mode: str,
) -> None:
    engine = open_demo(graph, threads=threads, mode=mode)

    outputs = {name: engine.run(*batch) for name, batch in batches.items()}

    assert [name for name in batches if not agrees(outputs[name], oracle[name])] == []


def test_the_plugin_graph_is_taken_where_the_native_op_is_built(
    demo: Path, manifest: Manifest, open_demo: Callable[..., OpenVinoEngine]
) -> None:
    open_demo("plugin")

    assert OpenVinoEngine(Bundle(demo, manifest), threads=1).info.graph == "plugin"


def test_throughput_takes_a_batch_for_every_stream(
    open_demo: Callable[..., OpenVinoEngine], manifest: Manifest
) -> None:
    engine = open_demo(threads=2, mode="throughput")

    assert engine.max_batch_size == 2 * manifest.max_batch_size
    assert engine.info == ("openvino", "fp32", "fp32", "standard", 2, 2)


def test_a_failure_in_one_part_waits_for_the_others_and_fails_the_batch(
    open_demo: Callable[..., OpenVinoEngine], batches: dict[str, Batch]
) -> None:
    engine = open_demo(threads=2, mode="throughput")
    images, padding_mask = batches["two, padded"]

    with pytest.raises(EngineFailure, match="OpenVINO failed"):
        engine.run(images, padding_mask[:, :-1])

    assert len(engine.run(images, padding_mask).scores) == 2


@pytest.mark.parametrize("method", ["start_async", "wait"])
@pytest.mark.parametrize("kind", RUNTIME_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_runtime_is_translated(
    open_demo: Callable[..., OpenVinoEngine],
    batches: dict[str, Batch],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    method: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("broken")

    engine = open_demo(threads=1)
    monkeypatch.setattr(ov.InferRequest, method, fail)

    with pytest.raises(EngineFailure, match=r"OpenVINO failed on \(1, .*: broken"):
        engine.run(*batches["one"])


# --- the cache


def test_the_second_start_compiles_nothing_and_answers_the_same(
    open_demo: Callable[..., OpenVinoEngine],
    batches: dict[str, Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = open_demo("plugin", threads=1).run(*batches["two, padded"])
    monkeypatch.delattr(ov.Core, "compile_model")

    second = open_demo("plugin", threads=1).run(*batches["two, padded"])

    for expected, found in zip(first, second, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_second_start_in_bf16_answers_the_same(
    demo: Path, manifest: Manifest, batches: dict[str, Batch], oracle: dict[str, RawOutput]
) -> None:
    bundle = Bundle(demo, manifest.model_copy(update={"precision": "bf16"}))
    first, second = (OpenVinoEngine(bundle, threads=1, float_type="bf16") for _ in range(2))
    if first.info.precision != "bf16":
        pytest.skip("this CPU does not compute in bf16, or the extension is not built")

    outputs = [engine.run(*batches["three"]) for engine in (first, second)]

    for found, again in zip(*outputs, strict=True):
        np.testing.assert_array_equal(found, again)
    assert np.abs(outputs[0].scores - oracle["three"].scores).max() > 1e-4
    require_known_answers(second, bundle)


def test_the_cache_serves_other_numbers_of_threads_and_streams(
    open_demo: Callable[..., OpenVinoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_demo(threads=1)
    monkeypatch.delattr(ov.Core, "compile_model")

    engine = open_demo(threads=2, mode="throughput")

    assert (engine.info.threads, engine.info.streams) == (2, 2)


def test_a_damaged_cache_is_made_again(
    open_demo: Callable[..., OpenVinoEngine],
    demo: Path,
    batches: dict[str, Batch],
    oracle: dict[str, RawOutput],
) -> None:
    open_demo(threads=1)
    (path,) = (demo / "cache").glob("*-model.openvino")
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2] + bytes(5000) + sound[len(sound) // 2 + 5000 :])

    engine = open_demo(threads=1)

    assert agrees(engine.run(*batches["one"]), oracle["one"])
    assert len(path.read_bytes()) == pytest.approx(len(sound), rel=0.01)


def test_a_cache_that_the_runtime_refuses_is_made_again(
    open_demo: Callable[..., OpenVinoEngine],
    batches: dict[str, Batch],
    oracle: dict[str, RawOutput],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("built for a different runtime configuration")

    open_demo(threads=1)
    monkeypatch.setattr(ov.Core, "import_model", refuse)
    caplog.set_level("INFO")

    engine = open_demo(threads=1)

    assert agrees(engine.run(*batches["one"]), oracle["one"])
    assert "is compiled again: built for a different runtime configuration" in caplog.text


# --- what it takes of the machine

OVERLAP = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
from bundle.manifest import Bundle
from engines.self_check import require_known_answers
from engines.cpu.openvino_engine import OpenVinoEngine

faulthandler.enable()  # which gives signal handlers a stack of their own
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append(True))
directory = Path(sys.argv[1])
first = OpenVinoEngine(Bundle.load(directory), threads=1)
second = OpenVinoEngine(Bundle.load(directory), threads=1)
first.close()
del first
second.close()
del second
subprocess.run([sys.executable, "-c", ""], check=True)
assert seen
"""


def test_signals_are_still_handled_after_engines_that_overlapped(demo: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OVERLAP, str(demo)], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr


GROWTH = """
import sys
from pathlib import Path
import numpy as np
from bundle.manifest import Bundle
from engines.self_check import require_known_answers
from engines.cpu.openvino_engine import OpenVinoEngine

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

directory = Path(sys.argv[1])
engine = OpenVinoEngine(Bundle.load(directory), threads=1)
sizes = np.random.default_rng(0).integers(96, 225, (150, 2))
for number, (height, width) in enumerate(sizes):
    if number == 50:
        before_mb = resident_mb()
    engine.run(np.zeros((1, height, width, 3), np.uint8), np.zeros((1, height, width), np.bool_))
print(resident_mb() - before_mb)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_every_size_of_image(demo: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", GROWTH, str(demo)], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 80  # 36 were seen, and 160 with the runtime's default


RECLUSE = """
import sys
from pathlib import Path
import numpy as np

def refuse(event, _):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto")):
        raise AssertionError(event)

sys.addaudithook(refuse)
from bundle.manifest import Bundle
from engines.self_check import require_known_answers
from engines.cpu.openvino_engine import OpenVinoEngine

directory = Path(sys.argv[1])
for _ in range(2):
    engine = OpenVinoEngine(Bundle.load(directory), threads=1)
    engine.run(np.zeros((1, 128, 128, 3), np.uint8), np.zeros((1, 128, 128), np.bool_))
    engine.close()
"""


def test_nothing_is_sent_and_nothing_but_the_cache_is_written(demo: Path, tmp_path: Path) -> None:
    shutil.rmtree(demo / "cache", ignore_errors=True)
    before = {path.relative_to(demo) for path in demo.rglob("*")}
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}

    result = subprocess.run(
        [sys.executable, "-c", RECLUSE, str(demo)],
        cwd=tmp_path,
        env=os.environ | places | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    new = {path.relative_to(demo).parts[0] for path in demo.rglob("*")} - {
        path.parts[0] for path in before
    }
    assert new == {"cache"}


THREADS = """
import os, sys
from pathlib import Path
import numpy as np
from bundle.manifest import Bundle
from engines.self_check import require_known_answers
from engines.cpu.openvino_engine import OpenVinoEngine

def cores_of_threads():
    return {frozenset(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")}

cores = sorted(os.sched_getaffinity(0))[:int(sys.argv[2])]
os.sched_setaffinity(0, cores)
for task in os.listdir("/proc/self/task"):  # those that NumPy has started already
    os.sched_setaffinity(int(task), cores)
directory = Path(sys.argv[1])
for mode in ("latency", "throughput"):
    engine = OpenVinoEngine(Bundle.load(directory), mode=mode)
    engine.run(np.zeros((2, 128, 128, 3), np.uint8), np.zeros((2, 128, 128), np.bool_))
    assert engine.info.threads == len(cores), engine.info
    assert cores_of_threads() == {frozenset(cores)}, cores_of_threads()
    engine.close()
"""


@pytest.mark.parametrize("num_cores", [1, 2])
def test_threads_are_as_many_as_cores_and_pinned_to_none(demo: Path, num_cores: int) -> None:
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < num_cores:
        pytest.skip(f"not Linux, or fewer than {num_cores} cores")

    result = subprocess.run(
        [sys.executable, "-c", THREADS, str(demo), str(num_cores)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr


def test_a_closed_engine_leaves_no_threads_of_its_own_behind(
    open_demo: Callable[..., OpenVinoEngine], batches: dict[str, Batch]
) -> None:
    tasks = Path("/proc/self/task")
    engine = open_demo(threads=2, mode="throughput")
    engine.run(*batches["eight"])
    before = len(list(tasks.iterdir()))

    engine.close()

    assert len(list(tasks.iterdir())) < before
