"""bench-gpu on a CPU: what fails is left out by name, and what was measured is shown and kept."""

import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_op, gpu_operator
from benchmarks.bench_gpu import Kept, Part, chosen, run_part
from benchmarks.engine_bundles import bundle_path
from benchmarks.gpu_bundles import checkpoint_path, make_model_bundles
from benchmarks.gpu_models import AT_ONCE, YARDSTICK, ModelTask, open_model
from benchmarks.gpu_operator import OPERATORS, OperatorTask, open_operator
from benchmarks.gpu_rounds import Failed, Measured, Times, Turn, measure
from benchmarks.gpu_tables import agreement, model_table, operator_table
from bundle.manifest import Bundle
from model.checkpoints.checkpoint_file import save_checkpoint
from model.configs import get_config
from model.network.deformable_detr import DeformableDetr
from model.network.ops.ms_deform_attn import ms_deform_attn
from plugins import cpu_kernels

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
