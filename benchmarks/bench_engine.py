"""Seconds per image of every engine in one run: python -m benchmarks.bench_engine.

Hugging Face's Deformable DETR, ONNX Runtime and OpenVINO with standard operators, and this
project's engine in three precisions, with the same random weights, from one image in memory to its
top detections. Each runs in a separate process; all are opened first (compiling is not counted) and
then measured in turn, --rounds times. Ratios are taken within a round, so that whatever slows the
machine slows both sides. The table also has a floor: the time that the model's convolutions and
products would take at the peak speed measured in the same rounds.

With --threads 1 the figure is CPU time of the process instead of wall time, which other work on the
machine hardly changes. Every sample is kept at once, in build/bench/.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.contestant_process import ContestantProcess
from benchmarks.contestants import ALL, BATCHES, ENGINES, PEAKS, Run, Task
from benchmarks.engine_bundles import bundle_path, make_bundles
from benchmarks.engine_tables import Measured, print_comparison, print_throughput
from benchmarks.floors import count_flop
from benchmarks.machine import cpu_name, today
from bundle.layout import GRAPH_FILES, STANDARD_FORM
from bundle.postprocess import RawOutput
from engines.cores import allowed_cores
from model.arguments import height_and_width

FOLDER = Path("build/bench")
VARIANTS = ("base", "refine", "two_stage")
SIZES = ((800, 1066), (480, 640))
PACKAGES = ("transformers", "torch", "onnxruntime", "openvino")
MIN_TURN_S = 2.0  # a turn is one run, or as many as it takes to fill this time


class Sample(NamedTuple):
    """Mean of one turn, in seconds per image."""

    wall_s: float
    cpu_s: float


# --- in the process of a contestant


def open_contestant(name: str, task: Task) -> tuple[Callable[[], Sample], RawOutput | None]:
    """A function that takes a turn, and the first output."""
    run = ALL[name](task)
    output = run()
    return partial(measure, run, batch=1 if output is None else len(output.scores)), output


def measure(run: Run, batch: int) -> Sample:
    """The mean of one turn of at least `MIN_TURN_S`, per image of the batch."""
    wall_s, cpu_s, num_images = time.perf_counter(), time.process_time(), 0
    while num_images == 0 or time.perf_counter() - wall_s < MIN_TURN_S:
        run()
        num_images += batch
    elapsed = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Sample(*(seconds / num_images for seconds in elapsed))


# --- the run


class Contestant:
    """One of the engines measured, in its process."""

    def __init__(self, name: str, task: Task) -> None:
        """Raises EOFError if it cannot be opened; stderr says why."""
        self.name = name
        self._process = ContestantProcess(open_contestant, name, task)
        self.output: RawOutput | None = self._process.about

    def sample(self) -> Sample:
        sample: Sample = self._process.ask()
        return sample

    def close(self) -> None:
        self._process.close()


@contextmanager
def opened(names: Sequence[str], task: Task) -> Iterator[list[Contestant]]:
    """The contestants that can be opened, each in its process; all are closed at the end."""
    contestants: list[Contestant] = []
    try:
        for name in names:
            note(task, f"opening {name}")
            try:
                contestants.append(Contestant(name, task))
            except EOFError:
                note(task, f"{name} cannot be opened and is left out")
        yield contestants
    finally:
        for contestant in contestants:
            contestant.close()


def run_rounds(
    task: Task, names: Sequence[str], *, num_rounds: int, log: Path
) -> tuple[Measured, bool]:
    """Measure one task; the second result is False if Ctrl-C or a failure cut it short."""
    graph = bundle_path(task.bundles, task.variant, precision="fp32") / GRAPH_FILES[STANDARD_FORM]
    measured = Measured(task, {}, {}, count_flop(graph, task.height, width=task.width))
    try:
        with opened(names, task) as contestants:
            measured.outputs.update({one.name: one.output for one in contestants})
            for number in range(1, num_rounds + 1):
                for contestant in contestants:
                    sample = contestant.sample()
                    seconds = sample.cpu_s if task.threads == 1 else sample.wall_s
                    measured.times.setdefault(contestant.name, []).append(seconds)
                    note(task, f"round {number}/{num_rounds}: {contestant.name} {seconds:.3f} s")
                    row = {"engine": contestant.name, "round": number, **sample._asdict()}
                    with log.open("a") as file:
                        file.write(json.dumps(task._asdict() | row, default=str) + "\n")
    except (KeyboardInterrupt, EOFError):
        return measured, False
    return measured, True


def note(task: Task, text: str) -> None:
    """Print progress on stderr, since the table goes to stdout."""
    print(f"{task.variant} {task.height}x{task.width}: {text}", file=sys.stderr, flush=True)


def print_machine(args: argparse.Namespace) -> None:
    """Print the machine and versions, above the tables."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    load, clock = os.getloadavg()[0], "CPU" if args.threads == 1 else "wall"
    print(f"{today()}: {cpu_name()}, threads {args.threads}, load {load:.1f} at start")
    print(f"Python {platform.python_version()}, {versions}")
    print(f"Batch 1, {clock} seconds: the median of {args.rounds} rounds, their spread in brackets")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--sizes", nargs="+", type=height_and_width, default=SIZES, metavar="HxW")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--skip-compile", action="store_true", help="torch.compile takes minutes")
    parser.add_argument(
        "--throughput", action="store_true", help="images/s of batches and streams instead"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=allowed_cores())
    parser.add_argument(
        "--bundles", type=Path, default=FOLDER, help="folder of VARIANT-PRECISION, made if missing"
    )
    return parser.parse_args()


def main() -> None:
    """Measure every variant at every size, and print a table of each."""
    args = parse_arguments()
    names = [name for name in args.engines if not (args.skip_compile and name == "hf-compile")]
    if args.throughput:
        names = [name for name in ENGINES | BATCHES if name.startswith("ours-")]
    needed = {name.split("-")[1] for name in names if name.startswith("ours-")}
    variants = [
        variant
        for variant in args.variants
        if make_bundles(args.bundles, variant, precisions=sorted(needed))
    ]
    os.environ.pop("OMP_WAIT_POLICY", None)  # peers run as they do by default
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = FOLDER / time.strftime("samples-%Y%m%d-%H%M%S.jsonl")
    print_machine(args)
    for variant in variants:
        for height, width in args.sizes:
            task = Task(variant, height, width, args.threads, args.bundles)
            measured, is_whole = run_rounds(task, [*names, *PEAKS], num_rounds=args.rounds, log=log)
            (print_throughput if args.throughput else print_comparison)(measured)
            sys.stdout.flush()
            if not is_whole:
                sys.exit(130)


if __name__ == "__main__":
    main()
