"""Speed of the operator and of whole models on a GPU, beside their peers: make bench-gpu.

Prints tables and writes them to benchmarks/results/DATE-gpu.md: calls of the operator as in the
encoder and in the decoder; full-size models with random weights, alone and in batches; images/s of
decoding JPEGs with and without nvImageCodec; images/s of the service with the engine torch-cuda,
relative to that of the engine. Contestants take turns, each in its process, but for decoders. What
is not installed, or fails, is left out by name.

Ctrl-C prints the table that is being measured. The same command continues with the next one, if it
is the same day, machine and commit; --again measures everything anew.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.bench_op import CALLS
from benchmarks.contestant_process import ContestantProcess
from benchmarks.engine_bundles import bundle_path
from benchmarks.gpu_bundles import make_model_bundles
from benchmarks.gpu_decoding import decoding_tables
from benchmarks.gpu_models import MODELS, ModelTask, open_model
from benchmarks.gpu_models import YARDSTICK as MODEL_YARDSTICK
from benchmarks.gpu_operator import OPERATORS, TYPES, OperatorTask, open_operator
from benchmarks.gpu_operator import YARDSTICK as OPERATOR_YARDSTICK
from benchmarks.gpu_rounds import Measured, Opener, measure
from benchmarks.gpu_tables import model_table, operator_table
from benchmarks.machine import describe_machine, today
from bundle.atomic import write_atomically
from bundle.device_image import Decode
from engines.decoders import DecoderName, open_decoder

RESULTS = Path(__file__).parent / "results"
FOLDER = Path("build/bench/gpu")
VARIANTS = ("two_stage", "base", "refine")
PARTS = ("operator", "models", "decoding", "served")
HEIGHT, WIDTH = 800, 1066
SERVED = ("two_stage", "fp16")
NOTES = """Medians of the rounds, with the least and the most in brackets; x: how many times faster
than the first row.

Operator: inputs lie in several places in turn, which together are three times as large as the GPU's
largest cache; launches are put into the queue before the first begins, and timed by CUDA's events.
Rows without locations or softmax receive them, as their kernels do; the last row is the time for
both in PyTorch. Errors are those of the output, against float64.

Models: from images in the host's memory to detections there. The first row is float32 without TF32;
half precision in PyTorch is by autocast. Same detections: the share of the first row's with the
same class within half a pixel.

Decoding: threads decode and resize one photograph again and again, each copy by itself; those of a
decoder on the GPU share batches. CPU time is that of the whole process.
"""


class Part(NamedTuple):
    """Tables with the same contestants."""

    opener: Opener
    names: Sequence[str]
    tasks: Sequence[Any]
    table: Callable[[Measured], str]
    prepare: Callable[[], None]


class Kept:
    """The tables of a day, which are kept as soon as they are whole."""

    def __init__(self, path: Path, head: str, *, result: Path) -> None:
        """Read the tables of the day so far; those under another head do not count.

        Args:
            head: what was measured with: machine, versions, settings.
            result: the file for readers.
        """
        self._path, self._head, self._result = path, head, result
        lines = path.read_text().splitlines() if path.exists() else []
        self._rows: list[dict[str, str]] = [json.loads(line) for line in lines]

    def __contains__(self, title: str) -> bool:
        return any((row["head"], row["title"]) == (self._head, title) for row in self._rows)

    def add(self, title: str, table: str) -> None:
        """Keep a table, and write the file of results anew."""
        row = {"head": self._head, "title": title, "table": table}
        self._rows.append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        parts = [f"# On a GPU, {today()}\n", NOTES]
        for head in dict.fromkeys(row["head"] for row in self._rows):
            parts.append(f"{head}\n")
            parts += [row["table"] for row in self._rows if row["head"] == head]
        write_atomically(self._result, "\n".join(parts).encode())


def run_part(
    part: Part,
    kept: Kept,
    *,
    rounds: int,
    start: Callable[..., ContestantProcess] = ContestantProcess,
) -> bool:
    """Measure the tables of a part that are not kept; False if that was interrupted."""
    missing = [task for task in part.tasks if str(task) not in kept]
    if not missing:
        return True
    part.prepare()
    for measured in measure(part.opener, part.names, tasks=missing, rounds=rounds, start=start):
        table = part.table(measured)
        print(table, flush=True)
        if not measured.is_whole:
            return False
        kept.add(str(measured.task), table)
    return True


def operator_parts(names: Sequence[str], device: str) -> Iterator[Part]:
    """The operator in the encoder and in the decoder, in every type."""
    for title in list(CALLS)[:2]:
        tasks = [OperatorTask(title, dtype, device) for dtype in TYPES]
        yield Part(open_operator, names, tasks, operator_table, lambda: None)


def model_parts(
    names: Sequence[str], *, variants: Sequence[str], batches: Sequence[int], device: str
) -> Iterator[Part]:
    """Every variant, in batches of these sizes."""
    for variant in variants:
        tasks = [
            ModelTask(variant, batch, HEIGHT, WIDTH, device, FOLDER.absolute()) for batch in batches
        ]
        prepare = make_preparation(variant)
        yield Part(open_model, names, tasks, model_table, prepare)


def make_preparation(variant: str) -> Callable[[], None]:
    """What makes the bundles of a variant."""
    return lambda: make_model_bundles(FOLDER, variant)


def measure_served(bundle: Path) -> str:
    """The output of bench_service with torch-cuda on a bundle."""
    command = [sys.executable, "-m", "benchmarks.bench_service", "--quick", "--bundle", str(bundle)]
    environment = os.environ | {"DETR_ENGINE": "torch-cuda"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise RuntimeError(f"bench_service ended with {result.returncode}")
    return result.stdout


def run_decoding(kept: Kept, *, names: Sequence[DecoderName], rounds: int) -> None:
    """Images/s of what decodes and resizes; what cannot be opened is left out by name."""
    title = "decoding and resizing"
    if title in kept:
        return
    decoders: dict[str, Decode | ValueError] = {}
    for name in names:
        try:
            decoders[name] = open_decoder(name)
        except ValueError as error:
            decoders[name] = error
    tables = decoding_tables(decoders, rounds=rounds)
    print(tables, flush=True)
    kept.add(title, tables)


def run_served(kept: Kept) -> None:
    """Images/s of the service beside those of the engine."""
    variant, precision = SERVED
    title = f"served by torch-cuda, {variant}, {precision}"
    if title in kept:
        return
    make_model_bundles(FOLDER, variant)
    try:
        shown = measure_served(bundle_path(FOLDER, variant, precision=precision).absolute())
    except RuntimeError as error:
        print(f"{title}: left out: {error}", file=sys.stderr)
        return
    table = f"## {title}\n\n{shown}"
    print(table, flush=True)
    kept.add(title, table)


def chosen(names: Sequence[str], wanted: Sequence[str], *, yardstick: str) -> list[str]:
    """The yardstick, and the contestants whose names contain one of these texts; else all."""
    return [
        name
        for name in names
        if not wanted or name == yardstick or any(text in name for text in wanted)
    ]


def describe_gpu() -> str:
    """The GPU, and PyTorch's CUDA."""
    found = torch.cuda.get_device_properties(0)
    memory = f"{found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors"
    return f"{found.name}, {memory}, compute capability {found.major}.{found.minor}, " + (
        f"CUDA {torch.version.cuda}"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="images at once")
    parser.add_argument("--rows", nargs="+", default=[], help="texts in the names of contestants")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    return parser.parse_args()


def main() -> int:
    """Measure what is missing; 1 without a GPU, 130 if it was interrupted."""
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        print(
            f"there is nothing to measure on: PyTorch {torch.__version__} finds no GPU; check "
            "`nvidia-smi`, and that the name of PyTorch does not end in +cpu",
            file=sys.stderr,
        )
        return 1
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    head = "; ".join(
        (
            describe_gpu(),
            describe_machine(["torch"]),
            f"{arguments.rounds} rounds",
            f"rows: {' '.join(arguments.rows) or 'all'}",
        )
    )
    print(head, flush=True)
    path = FOLDER / f"{today()}.jsonl"
    if arguments.again:
        path.unlink(missing_ok=True)
    kept = Kept(path, head, result=RESULTS / f"{today()}-gpu.md")
    try:
        return 0 if run(arguments, kept, device="cuda") else 130
    except KeyboardInterrupt:  # between two tables
        return 130


def run(arguments: argparse.Namespace, kept: Kept, *, device: str) -> bool:
    """All parts; False if one was interrupted."""
    operators = chosen(list(OPERATORS), arguments.rows, yardstick=OPERATOR_YARDSTICK)
    models = chosen(list(MODELS), arguments.rows, yardstick=MODEL_YARDSTICK)
    parts: list[Part] = []
    if "operator" in arguments.parts:
        parts += operator_parts(operators, device)
    if "models" in arguments.parts:
        parts += model_parts(
            models, variants=arguments.variants, batches=arguments.batches, device=device
        )
    if not all(run_part(part, kept, rounds=arguments.rounds) for part in parts):
        return False
    if "decoding" in arguments.parts:
        run_decoding(kept, names=("cpu", "gpu"), rounds=arguments.rounds)
    if "served" in arguments.parts:
        run_served(kept)
    return True


if __name__ == "__main__":
    sys.exit(main())
