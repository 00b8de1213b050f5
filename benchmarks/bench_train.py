"""Seconds of a training step, beside Hugging Face's: python -m benchmarks.bench_train.

Each model runs in a process of its own, with the same sizes, dropout, trained stages and boxes.
They take their steps in turn, and ratios are taken within a round, so that whatever slows the
machine slows both. With --threads 1, times are CPU time of the process instead of wall time. Ctrl-C
prints what has been measured.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.contestant_process import ContestantProcess
from benchmarks.machine import describe_machine, today
from engines.cores import allowed_cores
from model.config import TrainConfig, Variant
from model.configs import get_config
from model.data.collate import MicroBatch
from model.network.deformable_detr import DeformableDetr
from model.network.inference import normalise
from model.training.optimiser_step import take_step
from model.training.step_times import PARTS, StepTimes
from model.training.training_state import TrainingState

OBJECTS = 8  # in each image
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

    def config(self) -> TrainConfig:
        """The published recipe, one batch a step; layers have biases where Hugging Face's do."""
        config = get_config(self.variant)
        model = replace(config.model, input_proj_bias=True)
        return replace(config, model=model, batch_size=self.batch_size, accumulation_steps=1)

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


def open_ours(task: Task) -> tuple[Step, int]:
    """The step of `model.train`, and how many parameters it trains."""
    config, batch = task.config(), task.batch()
    model = DeformableDetr(config.model).to(task.device).train()
    state = TrainingState.start(model, config)

    def step() -> dict[str, float]:
        times = task.times()
        take_step(state, [batch], config=config, dtype=torch.float32, lap=times.lap)
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

    def step() -> dict[str, float]:
        times = task.times()

        def timed_loss(*args: object) -> object:
            times.lap("forward")
            return loss_of(*args)

        model.loss_function = timed_loss
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


OPENERS = {"Hugging Face": open_huggingface, "**detr-serve**": open_ours}


def open_contestant(name: str, task: Task) -> tuple[Step, int]:
    """A model that has taken a step that does not count, and how many parameters it trains."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    step, num_trained = OPENERS[name](task)
    step()
    return step, num_trained


def measure(
    task: Task, *, rounds: int, start: Callable[..., ContestantProcess] = ContestantProcess
) -> bool:
    """Run both in turn and print a table; False if it was interrupted."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in OPENERS}
    contestants: dict[str, ContestantProcess] = {}
    try:
        for name in OPENERS:
            contestants[name] = start(open_contestant, name, task)
        for number in range(rounds):
            for name in sorted(OPENERS, reverse=bool(number % 2)):
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


def print_table(
    task: Task, steps: dict[str, list[dict[str, float]]], *, num_trained: dict[str, int]
) -> None:
    """A row for each model: medians over the rounds that both completed."""
    num_rounds = min(len(rows) for rows in steps.values())
    clock = "CPU" if task.threads == 1 else "wall"
    print(
        f"\n## {task.variant}, {task.batch_size} x {task.height} x {task.width}, {task.device}, "
        f"{num_rounds} rounds, load {os.getloadavg()[0]:.1f} at the end\n"
    )
    if num_rounds == 0:
        return
    parts = " | ".join(f"{part}, s" for part in STEP_PARTS)
    print(f"| model | trained, M | {clock} s/step (spread) | images/s | x | {parts} |")
    print("|---" * (5 + len(STEP_PARTS)) + "|")
    totals = {
        name: [sum(row.values()) for row in rows[:num_rounds]] for name, rows in steps.items()
    }
    for name, seconds in totals.items():
        ratios = [a / b for a, b in zip(totals["Hugging Face"], seconds, strict=True)]
        median = statistics.median(seconds)
        split = [
            statistics.median(row[part] for row in steps[name][:num_rounds]) for part in STEP_PARTS
        ]
        print(
            f"| {name} | {num_trained[name] / 1e6:.2f} | {median:.2f} ({min(seconds):.2f} - "
            f"{max(seconds):.2f}) | {task.batch_size / median:.3f} | "
            f"{statistics.median(ratios):.2f} | {' | '.join(f'{s:.2f}' for s in split)} |",
            flush=True,
        )


def parse_size(text: str) -> tuple[int, int]:
    """HxW in pixels."""
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    """Measure every variant at every size."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    variants = [variant.value for variant in Variant]
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(480, 640)], metavar="HxW")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=allowed_cores())
    args = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print(f"{today()}: {describe_machine(['torch', 'transformers'])}, threads {args.threads}")
    for variant in args.variants:
        for height, width in args.sizes:
            for device in devices:
                task = Task(variant, height, width, args.batch_size, args.threads, device)
                if not measure(task, rounds=args.rounds):
                    raise SystemExit(130)


if __name__ == "__main__":
    main()
