"""The data sets of a run, and their images in batches that any number of workers makes alike."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from bundle.manifest import ClassInfo
from model.config import TrainConfig
from model.data.check import check_split, check_validation
from model.data.coco import CocoDataset
from model.data.collate import collate
from model.data.digits import DigitsDataset
from model.data.evaluation_data import report_faults, require_classes
from model.data.layouts import locate
from model.data.split import open_split
from model.data.transforms import make_transform

DIGITS_EPOCH_IMAGES = 1600  # where the configuration does not say
MicroBatch = tuple[Tensor, Tensor, list[dict[str, Any]]]  # as `collate` gives it


@dataclass(frozen=True)
class RunData:
    """Training and validation images of a run.

    Attributes:
        summary: what the data is, as plain values: goes into checkpoints, and decides whether
            a run may be resumed.
    """

    train: Any
    val: Any
    classes: tuple[ClassInfo, ...]
    summary: dict[str, Any]


def open_data(config: TrainConfig, data_dir: Path | None) -> RunData:
    """The data sets that a configuration names. Faults go to the log.

    Args:
        data_dir: holds splits train and val, see `model.data.coco.locate`; the digits need none.

    Raises:
        ValueError: there is no such data set, or training on it would be wrong; says why.
    """
    if config.dataset == "digits":
        return _open_digits(config, data_dir)
    if data_dir is None:
        raise ValueError(
            f"config {config.name} needs --data DIR, a data set in COCO's format with the splits "
            "train and val"
        )
    train_split, val_split = (open_split(*locate(data_dir, name)) for name in ("train", "val"))
    report_faults(train_split, check_split(train_split, config.model))
    report_faults(val_split, check_validation(val_split, train_split))
    transform = make_transform(config.augment, config.preprocess)
    train = CocoDataset(train_split, transform=transform, seed=config.seed)
    val = CocoDataset(val_split)
    require_classes(train.classes, val.classes)
    summary = {
        "dataset": data_dir.name,
        "train_images": len(train),
        "val_images": len(val),
        "classes": [info.name for info in train.classes],
    }
    for name, split in (("train", train_split), ("val", val_split)):
        summary[f"{name}_annotations"] = split.annotations.file.name
        summary[f"{name}_sha256"] = split.annotations.sha256
    return RunData(train, val, train.classes, summary)


def _open_digits(config: TrainConfig, data_dir: Path | None) -> RunData:
    if data_dir is not None:
        raise ValueError(
            f"config {config.name} makes its own images and takes no --data; "
            "choose a config with dataset='coco' to train on a directory"
        )
    num_images = config.epoch_images or DIGITS_EPOCH_IMAGES
    train, val = (
        DigitsDataset("train", seed=config.seed, num_images=num_images),
        DigitsDataset("val"),
    )
    summary = {"dataset": "digits", "train_images": len(train), "val_images": len(val)}
    return RunData(train, val, train.classes, summary)


def shield_worker(worker_id: int) -> None:
    """Make a data loading process outlive the signals that a whole process group gets.

    The main process decides when to stop, and still needs its batches until then. SIGINT is
    ignored; the first SIGTERM is, too, and the second ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class EpochSampler(Sampler[list[int]]):
    """Indices of one epoch in batches: a shuffle that (seed, epoch) alone decides.

    Args:
        skip: batches at the start that were trained on before an interruption.
    """

    def __init__(
        self, num_images: int, *, batch_size: int, seed: int, epoch: int, skip: int = 0
    ) -> None:
        self.batch_size = batch_size
        self.skip = skip
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        self.order = torch.randperm(num_images, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.skip * self.batch_size, len(self.order), self.batch_size):
            yield self.order[start : start + self.batch_size]

    def __len__(self) -> int:
        return max(0, -(-len(self.order) // self.batch_size) - self.skip)


def epoch_batches(
    dataset: Any, config: TrainConfig, *, epoch: int, skip_steps: int = 0
) -> Iterator[list[MicroBatch]]:
    """The batches of one epoch, `accumulation_steps` of them to a step; the last may have fewer.

    An image depends on (seed, epoch, index) alone, a batch on the configuration: both are the
    same for any number of workers, and after an interruption.
    """
    dataset.set_epoch(epoch)  # before the workers start, which copy the data set
    sampler = EpochSampler(
        len(dataset),
        batch_size=config.batch_size,
        seed=config.seed,
        epoch=epoch,
        skip=skip_steps * config.accumulation_steps,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.num_workers,
        collate_fn=partial(collate, min_side=config.preprocess.min_side),
        worker_init_fn=shield_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw a seed from the run's random state
    )
    step: list[MicroBatch] = []
    for batch in loader:
        step.append(batch)
        if len(step) == config.accumulation_steps:
            yield step
            step = []
    if step:
        yield step


def steps_per_epoch(num_images: int, config: TrainConfig) -> int:
    """Optimiser steps in a pass over the data, the last of them perhaps a smaller batch."""
    return -(-num_images // (config.batch_size * config.accumulation_steps))
