"""Seconds of a training step, beside its peers: python -m benchmarks.bench_train.

Peers are Hugging Face's model and, on a GPU, ours with the operator in plain PyTorch and in Triton.
One that cannot be opened is left out. Each runs in a process of its own, with the same sizes,
dropout, trained stages and boxes. They take their steps in turn, and ratios are taken within a
round, so that whatever slows the machine slows all. With --threads 1, times on a CPU are CPU time
of the process instead of wall time. Ctrl-C prints what has been measured.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch

from benchmarks.contestant_process import ContestantProcess
from benchmarks.machine import describe_machine, today
from benchmarks.operator_kernels import Kind, use_kernels
from engines.cores import allowed_cores
from model.arguments import height_and_width
from model.config import TrainConfig, Variant
from model.configs import get_config
from model.data.collate import MicroBatch
from model.network.deformable_detr import DeformableDetr
from model.network.inference import normalise
from model.training.freed_memory import keep_freed_memory
from model.training.optimiser_step import take_step
from model.training.precision import forward_dtype, set_tf32
from model.training.step_times import PARTS, StepTimes
from model.training.training_state import TrainingState

OBJECTS = 8  # in each image
BAR = 1.5  # times plain PyTorch, on a GPU in bf16
STEP_PARTS = PARTS[1:]  # without loading
Step = Callable[[], dict[str, float]]  # takes a step; seconds by part


class Task(NamedTuple):
    """What to train: batches of images of one size, on a device."""

    variant: str
    height: int
    width: int
    batch_size: int
    threads: int
    device: str
    precision: Literal["fp32", "bf16"] = "fp32"

    def __str__(self) -> str:
        size = f"{self.batch_size} x {self.height} x {self.width}"
        return f"{self.variant}, {size}, {self.device}, {self.precision}"

    def config(self) -> TrainConfig:
        """The published recipe, one batch a step; layers have biases where Hugging Face's do."""
        config = get_config(self.variant)
        model = replace(config.model, input_proj_bias=True)
        return replace(
            config,
            model=model,
            batch_size=self.batch_size,
            accumulation_steps=1,
            precision=self.precision,
        )

    def batch(self) -> MicroBatch:
        """Noise without padding, with boxes anywhere."""
        size = (self.height, self.width)
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, *size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        targets = [
            {
                "labels": torch.randint(0, 80, (OBJECTS,), generator=generator),
                "boxes": 0.2 + 0.3 * torch.rand(OBJECTS, 4, generator=generator),
                "size": torch.tensor(size),
                "image_id": image_id,
            }
            for image_id in range(self.batch_size)
        ]
        return images, torch.zeros(shape[:3], dtype=torch.bool), targets

    def times(self) -> StepTimes:
        """A watch: CPU time of one thread, or wall time."""
        clock = time.process_time if self.threads == 1 else time.perf_counter
        return StepTimes(torch.device(self.device), clock)


def open_ours(task: Task, *, kernels: Kind = "ours") -> tuple[Step, int]:
    """The step of `model.train`, and how many parameters it trains."""
    keep_freed_memory()
    use_kernels(kernels, task.device)
    config, batch = task.config(), task.batch()
    model = DeformableDetr(config.model).to(task.device).train()
    state = TrainingState.start(model, config)
    dtype = forward_dtype(config, torch.device(task.device))

    def step() -> dict[str, float]:
        times = task.times()
        take_step(state, [batch], config=config, dtype=dtype, lap=times.lap)
        return times.take_all()

    return step, sum(p.numel() for p in model.parameters() if p.requires_grad)


def open_huggingface(task: Task) -> tuple[Step, int]:
    """The same step with Hugging Face's model and loss, clipping and the fused AdamW."""
    from benchmarks.huggingface_peer import build_training_peer

    config = task.config()
    model = build_training_peer(Variant(task.variant), dropout=config.model.dropout).to(task.device)
    images, padding_mask, targets = task.batch()
    pixels = normalise(images, padding_mask, preprocess=config.preprocess).to(task.device)
    labels = [
        {"class_labels": t["labels"].to(task.device), "boxes": t["boxes"].to(task.device)}
        for t in targets
    ]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    run = partial(
        model,
        pixel_values=pixels.contiguous(),
        pixel_mask=(~padding_mask).long().to(task.device),
        labels=labels,
    )
    loss_of = model.loss_function
    dtype = forward_dtype(config, torch.device(task.device))
    is_half = dtype != torch.float32

    def step() -> dict[str, float]:
        times = task.times()

        def timed_loss(*args: object) -> object:
            times.lap("forward")
            return loss_of(*args)

        model.loss_function = timed_loss
        with torch.autocast(task.device, dtype if is_half else None, enabled=is_half):
            loss = run().loss
        times.lap("loss")
        loss.backward()
        times.lap("backward")
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        times.lap("optimiser")
        return times.take_all()

    return step, sum(p.numel() for p in parameters)


HUGGING_FACE, OURS, PLAIN = "Hugging Face", "**detr-serve**", "plain PyTorch"
OPENERS: dict[str, Callable[[Task], tuple[Step, int]]] = {
    HUGGING_FACE: open_huggingface,
    OURS: open_ours,
    PLAIN: partial(open_ours, kernels="reference"),
    "detr-serve, Triton": partial(open_ours, kernels="triton"),
}
NAMES = {"cpu": [HUGGING_FACE, OURS], "cuda": list(OPENERS)}
WARM_UP = {"cpu": 1, "cuda": 3}  # steps that do not count


def open_contestant(name: str, task: Task) -> tuple[Step, int]:
    """A model that has taken its first steps, and how many parameters it trains."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    set_tf32(task.config().tf32)
    step, num_trained = OPENERS[name](task)
    for _ in range(WARM_UP[task.device]):
        step()
    return step, num_trained


def measure(
    task: Task, *, rounds: int, start: Callable[..., ContestantProcess] = ContestantProcess
) -> bool:
    """Run all in turn and print a table; False if it was interrupted."""
    steps: dict[str, list[dict[str, float]]] = {}
    contestants: dict[str, ContestantProcess] = {}
    try:
        for name in NAMES[task.device]:
            with suppress_ended(f"{name} cannot be opened and is left out"):
                contestants[name] = start(open_contestant, name, task)
                steps[name] = []
        for number in range(rounds):
            for name in sorted(steps, reverse=bool(number % 2)):
                with suppress_ended(f"{name} has ended and is left out", steps=steps, name=name):
                    steps[name].append(contestants[name].ask())
                    seconds = sum(steps[name][-1].values())
                    print(f"round {number + 1}/{rounds}: {name} {seconds:.2f} s", file=sys.stderr)
        return True
    except KeyboardInterrupt:
        return False
    finally:
        for contestant in contestants.values():
            contestant.close()
        print_table(task, steps, num_trained={name: one.about for name, one in contestants.items()})


@contextmanager
def suppress_ended(
    message: str, *, steps: dict[str, list[dict[str, float]]] | None = None, name: str = ""
) -> Iterator[None]:
    """Go on without a model whose process ended, and whose steps then do not count."""
    try:
        yield
    except (EOFError, OSError):
        print(message, file=sys.stderr)
        if steps is not None:
            del steps[name]


def print_table(
    task: Task, steps: dict[str, list[dict[str, float]]], *, num_trained: dict[str, int]
) -> None:
    """A row for each model: medians over the rounds that all completed."""
    num_rounds = min((len(rows) for rows in steps.values()), default=0)
    clock = "CPU" if task.threads == 1 and task.device == "cpu" else "wall"
    load = f"load {os.getloadavg()[0]:.1f} at the end"
    print(f"\n## {task}, {num_rounds} rounds, {load}\n")
    if num_rounds == 0:
        return
    totals = {
        name: [sum(row.values()) for row in rows[:num_rounds]] for name, rows in steps.items()
    }
    yardsticks = [name for name in (HUGGING_FACE, PLAIN) if name in totals]
    head = ["model", "trained, M", f"{clock} s/step (spread)", "images/s"]
    head += [f"x {name}" for name in yardsticks] + [f"{part}, s" for part in STEP_PARTS]
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for name, seconds in totals.items():
        median = statistics.median(seconds)
        cells = [name, f"{num_trained[name] / 1e6:.2f}"]
        cells += [f"{median:.3f} ({min(seconds):.3f} - {max(seconds):.3f})"]
        cells += [f"{task.batch_size / median:.3f}"]
        cells += [f"{times_faster(totals[other], seconds):.2f}" for other in yardsticks]
        rows = steps[name][:num_rounds]
        cells += [f"{statistics.median(row[part] for row in rows):.3f}" for part in STEP_PARTS]
        print(f"| {' | '.join(cells)} |", flush=True)
    if PLAIN in totals and OURS in totals:
        ratio = times_faster(totals[PLAIN], totals[OURS])
        print(f"\nOurs: {ratio:.2f} times as fast as plain PyTorch; at least {BAR} is wanted.")


def times_faster(others: Sequence[float], ours: Sequence[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(others, ours, strict=True))


def main() -> None:
    """Measure every variant at every size."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    variants = [variant.value for variant in Variant]
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument(
        "--sizes", nargs="+", type=height_and_width, default=[(480, 640)], metavar="HxW"
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=allowed_cores())
    parser.add_argument("--device", choices=list(NAMES), help="only this one")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} finds no GPU; check `nvidia-smi`")
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    devices = [args.device] if args.device else here
    print(f"{today()}: {describe_machine(['torch', 'transformers'])}, threads {args.threads}")
    for variant in args.variants:
        for height, width in args.sizes:
            for device in devices:
                task = Task(
                    *(variant, height, width, args.batch_size, args.threads, device),
                    precision=args.precision,
                )
                if not measure(task, rounds=args.rounds):
                    raise SystemExit(130)


if __name__ == "__main__":
    main()
