"""bench-gpu on a CPU: what fails is left out by name, and what was measured is shown and kept."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks import bench_op, gpu_decoding, gpu_operator
from benchmarks.bench_gpu import Kept, Part, chosen, run_decoding, run_part
from benchmarks.engine_bundles import bundle_path
from benchmarks.gpu_bundles import checkpoint_path, make_model_bundles
from benchmarks.gpu_clock import time_launches
from benchmarks.gpu_models import AT_ONCE, YARDSTICK, ModelTask, open_model
from benchmarks.gpu_operator import OPERATORS, OperatorTask, open_operator
from benchmarks.gpu_rounds import Failed, Measured, Times, Turn, measure
from benchmarks.gpu_tables import agreement, model_table, operator_table
from bundle.layout import OPERATOR
from bundle.manifest import Bundle
from bundle.preprocess import Preprocess
from model.checkpoints.checkpoint_file import save_checkpoint
from model.configs import get_config
from model.network.deformable_detr import DeformableDetr
from model.network.ops.ms_deform_attn import ms_deform_attn
from plugins import cpu_kernels, library
from tests.engines.gpu.nvimagecodec import needs_nvimagecodec
from tests.export.graph.test_tensorrt_plan import FakeWithOp
from tests.fake_cuda import FakeCuda

DEMO = Path(__file__).parents[2] / "bundles" / "demo"
needs_kernels = pytest.mark.skipif(
    not cpu_kernels.instruction_sets(), reason="there was no C++ compiler"
)


def rows_of(table: str) -> dict[str, str]:
    """The lines of a table, by their first cell."""
    return {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()}


class Here:
    """A contestant in this process."""

    def __init__(self, opener: Callable[..., Any], *arguments: Any) -> None:
        self._function, self.about = opener(*arguments)

    def ask(self) -> Any:
        return self._function()

    def close(self) -> None:
        """Nothing is left running."""


def open_example(name: str, task: str) -> tuple[Turn, str]:
    """Takes 1 ms, then 2 ms, ...; "broken" is not to be opened, "brief" breaks in its third turn.

    "interrupted" is, by Ctrl-C, in its second turn.
    """
    if name == "broken":
        raise TypeError("no such operator\nfor this type")
    numbers = count(1)

    def turn() -> Times:
        number = next(numbers)
        if name == "brief" and number == 3:
            raise RuntimeError("an illegal memory access")
        if name == "interrupted" and number == 2:
            signal.raise_signal(signal.SIGINT)
        return {"run": float(number)}

    return turn, f"{name} of {task}"


def measured_here(*names: str, tasks: tuple[str, ...] = ("first", "second")) -> list[Measured]:
    return list(
        measure(open_example, names, tasks=tasks, rounds=3, start=Here)  # type: ignore[arg-type]
    )


def test_contestants_take_turns_in_every_task() -> None:
    found = measured_here("one", "other")

    assert [one.task for one in found] == ["first", "second"]
    assert [one.about["other"] for one in found] == ["other of first", "other of second"]
    assert found[1].times("one", "run") == [1.0, 2.0, 3.0]
    assert found[1].median("other", "run") == 2.0


def test_what_fails_leaves_the_others_and_the_other_tasks_alone() -> None:
    found = measured_here("broken", "one", "brief")

    for one in found:
        assert one.about["broken"] == Failed("TypeError: no such operator")
        assert one.about["brief"] == Failed("RuntimeError: an illegal memory access")
        assert one.median("one", "run") == 2.0
        assert one.is_whole


def test_ctrl_c_shows_what_has_been_measured() -> None:
    (found,) = measured_here("one", "interrupted")

    assert not found.is_whole
    assert found.times("one", "run") == [1.0, 2.0]
    assert found.about["interrupted"] == "interrupted of first"


def test_a_process_that_ends_is_left_out() -> None:
    class Ended(Here):
        def ask(self) -> Any:
            raise EOFError

    (found,) = measure(
        open_example,
        ["one"],
        tasks=["first"],
        rounds=3,
        start=Ended,  # type: ignore[arg-type]
    )

    assert found.about["one"] == Failed("its process ended; standard error says why")
    assert found.is_whole


def test_whole_tables_are_kept_and_not_measured_again(tmp_path: Path) -> None:
    prepared = []
    names = ["one", "interrupted"]

    def run(names: list[str], tasks: list[str], head: str = "H100") -> tuple[bool, str]:
        kept = Kept(tmp_path / "tables.jsonl", head, result=tmp_path / "result.md")
        part = Part(
            open_example, names, tasks, lambda found: f"of {found.task}", lambda: prepared.append(1)
        )
        is_whole = run_part(part, kept, rounds=3, start=Here)  # type: ignore[arg-type]
        path = tmp_path / "result.md"
        return is_whole, path.read_text() if path.exists() else ""

    assert run(names, ["first"]) == (False, "")
    assert run(["one"], ["first"])[0]
    is_whole, text = run(["one"], ["first", "second"])
    assert is_whole
    assert text.count("of first") == text.count("of second") == 1
    assert len(prepared) == 3
    assert run(names, ["first", "second"]) == (True, text)
    assert len(prepared) == 3
    assert not run(names, ["first", "second"], head="H200")[0]


def test_rows_are_chosen_by_texts_and_the_yardstick_stays() -> None:
    names = ["plain", "ours, fp32", "ours, fp16", "theirs"]

    assert chosen(names, [], yardstick="plain") == names
    assert chosen(names, ["fp16"], yardstick="plain") == ["plain", "ours, fp16"]


@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_operators_that_run_here_are_timed_and_the_others_named(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(bench_op, "PYRAMID", ((6, 8), (3, 4), (2, 2), (1, 1)))
    monkeypatch.setattr(gpu_operator, "LAUNCHES", 2)
    title = "decoder, 300 queries"
    names = [name for name in OPERATORS if "torch.compile" not in name]

    (found,) = measure(
        open_operator,
        names,
        tasks=[OperatorTask(title, dtype, "cpu")],
        rounds=2,
        start=Here,  # type: ignore[arg-type]
    )

    torch.use_deterministic_algorithms(False)
    lines = rows_of(operator_table(found))
    assert lines[f"## operator, {title}, {dtype}"]
    ran = [name for name, about in found.about.items() if not isinstance(about, Failed)]
    assert ran == [
        "plain PyTorch",
        "**detr-serve, CUDA**",
        "**detr-serve, CUDA, deterministic**",
        "softmax and locations alone, PyTorch",
    ]
    for name in ran[:3]:
        assert found.about[name]["error"] < (1e-5 if dtype == "fp32" else 2e-2)
        assert len(found.times(name, "both")) == 2
    assert "left out: ValueError: no triton kernels" in lines["**detr-serve, Triton**"]
    assert "No module named" in lines["the authors' kernel, without softmax and locations"]


def attend_at(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """What kernels of others compute, which receive locations and weights."""
    levels, parts = value.split(shapes.prod(1).tolist(), 1), []
    for level, (height, width) in enumerate(shapes.tolist()):
        maps = levels[level].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
        grids = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        shares = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        sampled = torch.nn.functional.grid_sample(maps, grids, align_corners=False)
        parts.append((sampled * shares).sum(-1))
    return sum(parts[1:], parts[0]).unflatten(0, (len(value), -1)).permute(0, 3, 1, 2).flatten(2)


class AuthorsModule(ModuleType):
    """The functions of the authors' module."""

    def ms_deform_attn_forward(self, *arguments: Any) -> Tensor:
        value, shapes, starts, locations, weights, step = arguments
        assert (starts.tolist(), step) == ([0, 48, 60, 64], 64)
        return attend_at(value, shapes, locations, weights)

    def ms_deform_attn_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        value, shapes, _, locations, weights, gradient, _ = arguments
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        with torch.enable_grad():
            output = attend_at(leaves[0], shapes, *leaves[1:])
        return torch.autograd.grad(output, leaves, gradient)


class DeformopsModule(ModuleType):
    """What is used of deformops.registry."""

    Backend = SimpleNamespace(CUDA="cuda", TRITON="triton")

    def msda(self, *arguments: Any, method: str, backend: str) -> Tensor:
        value, shapes, _, locations, logits = arguments
        assert (method, backend) == ("softmax", "triton")
        weights = logits.softmax(-1).unflatten(-1, locations.shape[3:5])
        return attend_at(value, shapes, locations, weights)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (
            "the authors' kernel, without softmax and locations",
            AuthorsModule("MultiScaleDeformableAttention"),
        ),
        ("deformops, Triton, without locations", DeformopsModule("deformops.registry")),
    ],
)
def test_kernels_of_others_are_given_what_they_take(
    monkeypatch: pytest.MonkeyPatch, name: str, module: ModuleType
) -> None:
    monkeypatch.setattr(bench_op, "PYRAMID", ((6, 8), (3, 4), (2, 2), (1, 1)))
    monkeypatch.setattr(gpu_operator, "LAUNCHES", 1)
    monkeypatch.setitem(sys.modules, "deformops", ModuleType("deformops"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    turn, about = open_operator(name, OperatorTask("decoder, 300 queries", "fp32", "cpu"))

    assert about["error"] < 1e-5
    assert turn().keys() == {"forward", "both"}


class FakeEvent:
    """An event of a GPU on which a launch takes 2 ms; `log` has what was done."""

    log: ClassVar[list[str]] = []

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.log.append("event")

    def synchronize(self) -> None:
        self.log.append("wait")

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 2.0 * 3


def test_launches_on_a_gpu_are_queued_before_the_first_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = FakeEvent.log
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))

    ms = time_launches(lambda number: log.append(str(number)), 3, device="cuda")

    assert ms == 2.0
    assert log == ["0", "sleep", "event", "0", "1", "2", "event", "wait"]


def test_there_are_more_inputs_than_a_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_op, "PYRAMID", ((6, 8), (3, 4), (2, 2), (1, 1)))
    task = OperatorTask("decoder, 300 queries", "fp16", "cpu")
    size = sum(part.nbytes for part in task.call() if isinstance(part, Tensor))
    monkeypatch.setattr(gpu_operator, "memory_of_caches", lambda device: 2 * size)

    calls = task.calls()

    assert len(calls) == 6
    assert len({call.value.data_ptr() for call in calls}) == 6
    assert torch.equal(calls[0].offsets, calls[5].offsets)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The demo's bundle, and a checkpoint of its size with random weights."""
    # Put back at the end, as are the flags.
    monkeypatch.setattr("model.network.attention.ms_deform_attn", ms_deform_attn)
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    ignored = shutil.ignore_patterns("cache")
    shutil.copytree(DEMO, bundle_path(tmp_path, "two_stage", precision="fp32"), ignore=ignored)
    demo, config = Bundle.load(DEMO), get_config("demo")
    save_checkpoint(
        checkpoint_path(tmp_path, "two_stage"),
        DeformableDetr(config.model),
        config=config,
        classes=demo.manifest.classes,
        provenance={},
        metrics={},
    )
    yield tmp_path
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@needs_kernels
def test_models_that_run_here_are_timed_and_compared(folder: Path) -> None:
    names = [f"**torch-cuda, {precision}**" for precision in ("fp32", "bf16")]
    names = [YARDSTICK, "our operator in PyTorch, eager, bf16", *names, AT_ONCE]
    task = ModelTask("two_stage", 2, 64, 96, "cpu", folder)

    make_model_bundles(folder, "two_stage")
    (found,) = measure(open_model, names, tasks=[task], rounds=1, start=Here)  # type: ignore[arg-type]
    lines = rows_of(model_table(found._replace(about=found.about | {"lost": Failed("no | GPU")})))

    assert lines["## two_stage, 2 x 64 x 96"]
    assert [name for name, about in found.about.items() if isinstance(about, Failed)] == []
    assert lines[YARDSTICK].endswith(" | 100.0% | 0.0e+00 |")
    assert lines["lost"] == "| lost | left out: no / GPU |  |  |  |  |"
    speeds = [float(lines[name].split(" | ")[3]) for name in names]
    assert min(speeds) > 0
    same, bf16 = (
        agreement(found.about[names[2]]["output"], found.about[name]["output"], task=task)
        for name in (names[2], names[3])
    )
    assert same == (1.0, 0.0)
    assert bf16[0] > 0.5
    assert 0 < bf16[1] < 0.1


def test_tensorrt_is_left_out_where_there_is_none(folder: Path) -> None:
    task = ModelTask("two_stage", 1, 64, 96, "cpu", folder)

    with pytest.raises(ValueError, match=r"nvidia-smi|tensorrt"):
        open_model("**TensorRT, fp32**", task)


def test_tensorrt_runs_a_plan_for_batches_of_this_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeWithOp(cuda))
    (folder / library.TENSORRT_PLUGIN).write_text(OPERATOR)
    monkeypatch.setattr(library, "FOLDER", folder)
    monkeypatch.setattr("export.graph.tensorrt_plan.TIMING_CACHE", folder / "timing.cache")
    task = ModelTask("two_stage", 2, 64, 96, "cpu", folder)

    turn, about = open_model("**TensorRT, fp32**", task)
    _, expected = open_model("**torch-cuda, fp32**", task)

    assert turn()["run"] > 0
    same, error = agreement(expected["output"], about["output"], task=task)
    assert (same, error < 1e-4) == (1.0, True)


@needs_nvimagecodec
def test_decoders_are_measured_beside_the_cpu_and_those_that_do_not_open_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_decoding, "SIZES", {"64x48": (64, 48)})
    monkeypatch.setattr(gpu_decoding, "allowed_cores", lambda: 1)
    monkeypatch.setattr(gpu_decoding, "IMAGES_A_THREAD", 1)
    monkeypatch.setattr(gpu_decoding, "FULL_SIZE", Preprocess(short_side=32, long_side=64))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    kept = Kept(tmp_path / "kept.jsonl", "head", result=tmp_path / "result.md")

    for _ in range(2):
        run_decoding(kept, names=("cpu", "nvimagecodec-on-cpu", "gpu"), rounds=1)

    shown = capsys.readouterr().out
    rows = rows_of(shown)
    assert shown.count("## decoding and resizing to 800x1067, a JPEG of 64x48 and ") == 1
    assert [name for name in rows if "threads" in name] == [
        "cpu, 1 threads",
        *(f"nvimagecodec-on-cpu, {number} threads" for number in (1, 2, 4)),
    ]
    assert all(float(rows["cpu, 1 threads"].split(" | ")[place]) > 0 for place in (2, 3))
    assert "left out: JPEGs cannot be decoded on GPU 0: PyTorch" in rows["gpu"]
    assert (tmp_path / "result.md").read_text().endswith(shown.rstrip() + "\n")
