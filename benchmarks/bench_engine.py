"""Seconds per image of every engine in one run: python -m benchmarks.bench_engine.

Hugging Face's Deformable DETR, ONNX Runtime and OpenVINO with standard operators, and this
project's engine in three precisions, with the same random weights, from a batch of one image in
memory to its top detections. Each has a process of its own; they are opened first (compiling is not
counted) and then measured in turn, --rounds times. Ratios are taken within a round, so that what
slows a machine down slows both sides. Beside the times stand those of a floor: the operations of
the model's convolutions and products at the peak speed that the same rounds measured.

With --threads 1 the figure is CPU time of the process instead of wall time: it hardly changes where
other work shares the machine. Every sample is kept as it is made, in build/bench/.
"""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contestants import ENGINES, PEAKS, Run, Task
from benchmarks.engine_bundles import bundle_path, make_bundles
from benchmarks.floors import PEAK_FLOP, count_flop
from service.engines.base import RawOutput

FOLDER = Path("build/bench")
VARIANTS = ("base", "refine", "two_stage")
SIZES = ((800, 1066), (480, 640))
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
BARS = {"ours-fp32": (3.6, 3.8), "ours-bf16": (7.0, 7.5), "ours-int8": (11.5, 13.0)}  # have, aim
PACKAGES = ("transformers", "torch", "onnxruntime", "openvino")
MIN_TURN_S = 2.0  # a turn is one image, or as many as this time takes


class Sample(NamedTuple):
    """Mean of one turn, in seconds of one run."""

    wall_s: float
    cpu_s: float


Samples = dict[str, list[Sample]]


# --- in the process of a contestant


def work(pipe: Connection, name: str, task: Task) -> None:
    """Open the contestant, send its first output, then a sample whenever one is asked for."""
    run = (ENGINES | PEAKS)[name](task)
    pipe.send(run())
    with suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(measure(run))


def measure(run: Run) -> Sample:
    wall_s, cpu_s, num_runs = time.perf_counter(), time.process_time(), 0
    while num_runs == 0 or time.perf_counter() - wall_s < MIN_TURN_S:
        run()
        num_runs += 1
    elapsed = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Sample(*(seconds / num_runs for seconds in elapsed))


# --- the run


class Contestant:
    """One engine in its process."""

    def __init__(self, name: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, name, task), daemon=True)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process alone
        self._process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.first_output: RawOutput | None = self._pipe.recv()

    def sample(self) -> Sample:
        self._pipe.send(None)
        sample: Sample = self._pipe.recv()
        return sample

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


@contextmanager
def opened(names: Sequence[str], task: Task) -> Iterator[list[Contestant]]:
    """Those of the contestants that open; what one that does not has to say is on stderr."""
    contestants: list[Contestant] = []
    try:
        for name in names:
            note(f"{task.variant} {task.height}x{task.width}: opening {name}")
            try:
                contestants.append(Contestant(name, task))
            except EOFError:
                note(f"{name} did not open and is left out")
        yield contestants
    finally:
        for contestant in contestants:
            contestant.close()


def run_rounds(
    contestants: list[Contestant], num_rounds: int, task: Task, log: Path, samples: Samples
) -> None:
    """Measure everyone in turn; samples grow as they are made, and so does the log."""
    for number in range(1, num_rounds + 1):
        for contestant in contestants:
            sample = contestant.sample()
            samples.setdefault(contestant.name, []).append(sample)
            note(
                f"{task.variant} {task.height}x{task.width}, round {number}/{num_rounds}: "
                f"{contestant.name} {sample.wall_s:.3f} s, CPU {sample.cpu_s:.3f} s"
            )
            row = {"engine": contestant.name, "round": number, **sample._asdict()}
            with log.open("a") as file:
                file.write(json.dumps({**task._asdict(), **row}, default=str) + "\n")


def report(task: Task, samples: Samples, flop: float, outputs: dict[str, RawOutput]) -> None:
    """Print the table of one task, and which bars it reaches."""
    times = {name: [figure(task, sample) for sample in found] for name, found in samples.items()}
    peaks = peak_speeds({name: times[name] for name in PEAKS if name in times})
    print(f"\n### {task.variant}, {task.height} x {task.width}: {flop / 1e9:.0f} GFLOP\n")
    print("Peak: " + ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()))
    print("\n| engine | s/image | x Hugging Face | floor, s | x floor | scores off by |")
    print("|---|---|---|---|---|---|")
    for name in (name for name in LABELS if name in times):
        median = statistics.median(times[name])
        precision = next((p for p in peaks if name.endswith(p)), "fp32")
        floor = flop / peaks[precision] if precision in peaks else float("nan")
        print(
            f"| {LABELS[name]} | {median:.3f} ({min(times[name]):.3f} - {max(times[name]):.3f}) | "
            f"{ratio(times, name):.2f} | {floor:.3f} | {median / floor:.2f} | "
            f"{score_error(outputs, name):.0e} |"
        )
    print()
    for name, (bar, aim) in BARS.items():
        if name in times and YARDSTICK in times:
            found = ratio(times, name)
            word = "reached" if found >= aim else "bar reached" if found >= bar else "MISSED"
            print(f"- {name}: {found:.2f} times Hugging Face, of {bar} (aim {aim}): {word}")
    sys.stdout.flush()


def figure(task: Task, sample: Sample) -> float:
    return sample.cpu_s if task.threads == 1 else sample.wall_s


def peak_speeds(times: dict[str, list[float]]) -> dict[str, float]:
    """FLOP/s by precision."""
    precisions = {name: name.removeprefix("peak-") for name in times}
    return {p: PEAK_FLOP[p] / statistics.median(times[name]) for name, p in precisions.items()}


def ratio(times: dict[str, list[float]], name: str) -> float:
    """How many times faster than the yardstick: the median over the rounds that both have run."""
    pairs = zip(times.get(YARDSTICK, ()), times[name], strict=False)
    return statistics.median([theirs / ours for theirs, ours in pairs] or [float("nan")])


def score_error(outputs: dict[str, RawOutput], name: str) -> float:
    """Largest difference of scores of equal rank from the yardstick's."""
    if YARDSTICK not in outputs:
        return float("nan")
    return float(np.abs(outputs[name].scores - outputs[YARDSTICK].scores).max())


def describe_machine(args: argparse.Namespace) -> None:
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    clock = "CPU seconds of the process" if args.threads == 1 else "wall seconds"
    print(f"{cpu}, {args.threads} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, {versions}")
    print(f"Median of {args.rounds} rounds, the spread in parentheses; {clock}.")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--sizes", nargs="+", type=size, default=SIZES, metavar="HxW")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--skip-compile", action="store_true", help="torch.compile takes minutes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--bundles", type=Path, default=FOLDER, help="folder of VARIANT-PRECISION, made if missing"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    names = [name for name in args.engines if not (args.skip_compile and name == "hf-compile")]
    os.environ.pop("OMP_WAIT_POLICY", None)  # peers run as they do by default
    needed = {"fp32", *(name.removeprefix("ours-") for name in names if name in BARS)}
    for variant in args.variants:
        make_bundles(args.bundles, variant, sorted(needed))
    describe_machine(args)
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = FOLDER / time.strftime("samples-%Y%m%d-%H%M%S.jsonl")
    for variant in args.variants:
        for height, width in args.sizes:
            task = Task(variant, height, width, args.threads, args.bundles)
            if not compare([*names, *PEAKS], task, args.rounds, log):
                sys.exit(130)


def compare(names: Sequence[str], task: Task, num_rounds: int, log: Path) -> bool:
    """Measure one task and print its table, also where it is interrupted: then returns False."""
    samples: Samples = {}
    outputs: dict[str, Any] = {}
    flop = count_flop(bundle_path(task.bundles, task.variant, "fp32") / "model.onnx", *task[1:3])
    try:
        with opened(names, task) as contestants:
            outputs = {contestant.name: contestant.first_output for contestant in contestants}
            run_rounds(contestants, num_rounds, task, log, samples)
    except KeyboardInterrupt:
        note("interrupted; what was measured so far:")
        return False
    finally:
        report(task, samples, flop, outputs)
    return True


if __name__ == "__main__":
    main()
