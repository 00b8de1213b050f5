"""The tables of bench_engine, and whether the bars are reached."""

import statistics
from typing import NamedTuple

import numpy as np

from benchmarks.contestants import PRECISIONS, Task
from benchmarks.floors import PEAK_FLOP
from bundle.postprocess import RawOutput

YARDSTICK = "hf"
LABELS = {
    "hf": "Hugging Face, fp32",
    "hf-bf16": "Hugging Face, bf16 autocast",
    "hf-compile": "Hugging Face, torch.compile",
    "onnxruntime": "ONNX Runtime, fp32",
    "openvino": "OpenVINO, fp32",
    "openvino-bf16": "OpenVINO, bf16",
    "ours-fp32": "**detr-serve, fp32**",
    "ours-bf16": "**detr-serve, bf16**",
    "ours-int8": "**detr-serve, int8**",
}
# How many times faster than Hugging Face: required, and aimed at.
BARS = {"ours-fp32": (3.6, 3.8), "ours-bf16": (7.0, 7.5), "ours-int8": (11.5, 13.0)}


class Measured(NamedTuple):
    """Everything measured for one task.

    times: by contestant, seconds per image (per run for peaks) of every round.
    outputs: by contestant, its first output.
    flop: operations for one image; see `floors.count_flop`.
    """

    task: Task
    times: dict[str, list[float]]
    outputs: dict[str, RawOutput | None]
    flop: float

    def ratio(self, name: str) -> float:
        """How many times faster than the yardstick: the median over the rounds that both ran."""
        pairs = zip(self.times.get(YARDSTICK, ()), self.times[name], strict=False)
        return statistics.median([theirs / ours for theirs, ours in pairs] or [float("nan")])

    def peak(self, precision: str) -> float:
        """FLOP/s measured in a precision."""
        times = self.times.get(f"peak-{precision}")
        return PEAK_FLOP[precision] / statistics.median(times) if times else float("nan")

    def score_error(self, name: str) -> float:
        """Largest difference from the yardstick between scores of equal rank."""
        ours, theirs = self.outputs.get(name), self.outputs.get(YARDSTICK)
        if ours is None or theirs is None:
            return float("nan")
        return float(np.abs(ours.scores[:1] - theirs.scores).max())


def print_comparison(measured: Measured) -> None:
    """Seconds per image of every engine, beside Hugging Face's and the floor."""
    _print_heading(measured)
    print("\n| engine | s/image | x Hugging Face | floor, s | x floor | scores off by |")
    print("|---|---|---|---|---|---|")
    for name, label in LABELS.items():
        if name not in measured.times:
            continue
        times = measured.times[name]
        median = statistics.median(times)
        precision = next((p for p in PRECISIONS if name.endswith(p)), "fp32")
        floor = measured.flop / measured.peak(precision)
        print(
            f"| {label} | {median:.3f} ({min(times):.3f} - {max(times):.3f}) | "
            f"{measured.ratio(name):.2f} | {floor:.3f} | {median / floor:.2f} | "
            f"{measured.score_error(name):.0e} |"
        )
    print()
    for name, (bar, aim) in BARS.items():
        if name in measured.times and YARDSTICK in measured.times:
            found = measured.ratio(name)
            verdict = "aim reached" if found >= aim else "reached" if found >= bar else "MISSED"
            print(f"- {name}: {found:.2f} of {bar} (aim {aim}) times Hugging Face, {verdict}")


def print_throughput(measured: Measured) -> None:
    """Images/s of the engine, by how its threads are used."""
    _print_heading(measured)
    threads = measured.task.threads
    print(f"\n| precision | one image, {threads} threads | {threads} images, {threads} threads | "
          f"{threads} images, {threads} streams of one thread |")  # fmt: skip
    print("|---|---|---|---|")
    for precision in PRECISIONS:
        names = [f"ours-{precision}{kind}" for kind in ("", "-batch", "-streams")]
        found = [measured.times[name] for name in names if name in measured.times]
        speeds = [f"{1 / statistics.median(times):.2f}" for times in found]
        print(f"| {precision} | {' | '.join(speeds)} |")


def _print_heading(measured: Measured) -> None:
    task = measured.task
    print(f"\n## {task.variant}, {task.height} x {task.width}\n")
    peaks = [f"{p} {measured.peak(p) / 1e9:.0f}" for p in PRECISIONS]
    print(f"{measured.flop / 1e9:.0f} GFLOP; peaks in GFLOP/s: {', '.join(peaks)}")
