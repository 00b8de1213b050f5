"""The tables of bench_gpu."""

import statistics
from collections.abc import Iterator

from benchmarks import gpu_models, gpu_operator
from benchmarks.gpu_models import ModelTask, agreement
from benchmarks.gpu_operator import OperatorTask
from benchmarks.gpu_rounds import Failed, Measured


def operator_table(measured: Measured) -> str:
    """A call of the operator: milliseconds, relative to plain PyTorch, and the largest error."""
    task: OperatorTask = measured.task
    head = ["", "forward, ms", "x", "forward + backward, ms", "x", "largest error"]
    rows = []
    for name, about in measured.about.items():
        if isinstance(about, Failed):
            rows.append(_failed(name, about, len(head)))
            continue
        cells = [name]
        for part in ("forward", "both"):
            yardstick = measured.median(gpu_operator.YARDSTICK, part)
            cells += time_cells(measured.times(name, part), yardstick, digits=4)
        error = about["error"]
        rows.append([*cells, "" if error is None else f"{error:.1e}"])
    shown = table(f"{task}{_whole(measured)}", head, rows=rows)
    return "\n".join([shown, *_beside_bars(measured)])


def _beside_bars(measured: Measured) -> Iterator[str]:
    """How many times faster ours is than each that it has to beat."""
    medians = {name: measured.median(name, "both") for name in measured.turns}
    ours = medians.get(gpu_operator.OURS)
    for name, bar in gpu_operator.BARS.items():
        theirs = medians.get(name)
        if ours and theirs:
            times = f"{theirs / ours:.2f} times as fast as {name}"
            yield f"Forward and backward: {times}; at least {bar:g} is wanted on an H100.\n"


def model_table(measured: Measured) -> str:
    """A batch through whole models: images/s, relative to PyTorch, and agreement with it."""
    task: ModelTask = measured.task
    head = ["", "ms a batch", "x", "images/s", "same detections", "largest error of a score"]
    rows = []
    exact = measured.about.get(gpu_models.YARDSTICK)
    yardstick = measured.median(gpu_models.YARDSTICK, "run")
    for name, about in measured.about.items():
        if isinstance(about, Failed):
            rows.append(_failed(name, about, len(head)))
            continue
        times = measured.times(name, "run")
        speed = f"{1e3 * task.batch / statistics.median(times):.1f}" if times else ""
        same = ["", ""]
        if exact is not None and not isinstance(exact, Failed):
            share, error = agreement(exact["output"], about["output"], task=task)
            same = [f"{share:.1%}", f"{error:.1e}"]
        rows.append([name, *time_cells(times, yardstick, digits=2), speed, *same])
    return table(f"{task}{_whole(measured)}", head, rows=rows)


def _whole(measured: Measured) -> str:
    return "" if measured.is_whole else ", interrupted"


def time_cells(times: list[float], yardstick: float | None, *, digits: int) -> list[str]:
    """The median with the least and the most, and how many times faster than the yardstick."""
    if not times:
        return ["", ""]
    median = statistics.median(times)
    spread = f"{median:.{digits}f} ({min(times):.{digits}f} - {max(times):.{digits}f})"
    return [spread, f"{yardstick / median:.2f}" if yardstick else ""]


def _failed(name: str, failed: Failed, num_cells: int) -> list[str]:
    reason = failed.reason.replace("|", "/")
    return [name, f"left out: {reason}", *[""] * (num_cells - 2)]


def table(title: str, head: list[str], *, rows: list[list[str]]) -> str:
    """A table in Markdown under its title."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join([f"## {title}\n", *lines, ""])
