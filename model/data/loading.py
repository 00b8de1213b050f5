"""The data sets of a run, and its batches, which do not depend on the number of workers."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.manifest import ClassInfo
from model.config import TrainConfig
from model.data.check import check_split, check_validation
from model.data.coco import CocoDataset
from model.data.collate import MicroBatch, Packed, collate, pack, unpack
from model.data.data_report import DataReport
from model.data.data_set import DataSet
from model.data.digits import DigitsDataset
from model.data.evaluation_data import report_faults
from model.data.formats.source import Layout
from model.data.layouts import find_run_layout
from model.data.mixing import make_mix
from model.data.place import folder_name
from model.data.transforms import largest_size, least_side, make_transform
from model.data.workers import work_ahead
from model.distributed import num_processes, process_index

DIGITS_EPOCH_IMAGES = 1600  # by default
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Training and validation images of a run.

    Attributes:
        summary: identifies the data, as plain values; stored in checkpoints, and decides whether
            a run may be resumed.
        report: what a new run says about its data; None for the digits.
    """

    train: Any
    val: Any
    classes: tuple[ClassInfo, ...]
    summary: dict[str, Any]
    report: DataReport | None = None


def open_data(
    config: TrainConfig,
    data_dir: Path | None,
    *,
    val_fraction: float | None = None,
    layout: Layout | None = None,
) -> RunData:
    """Open the data sets of a configuration. Faults are logged.

    Args:
        data_dir: holds a data set of a known format; None for the digits.
        val_fraction: the part of the images that becomes the split val if the data has none.
        layout: what `find_run_layout` found in `data_dir`, if it was called already.

    Raises:
        ValueError: there is no such data set, or training on it would be wrong; says why.
    """
    layout = layout or find_run_layout(config, data_dir, val_fraction=val_fraction)
    if layout is None or data_dir is None:
        return _open_digits(config)
    data_set = DataSet(layout, val_fraction)
    train_split, val_split = (data_set.open(split) for split in ("train", "val"))
    log.info(name := data_set.describe([train_split, val_split]))
    train_faults = check_split(train_split, config.model)
    report_faults(train_split, train_faults)
    val_faults = check_validation(val_split, train_split)
    report_faults(val_split, val_faults)
    transform = make_transform(config.augment, config.preprocess)
    mix = make_mix(config.augment)
    train = CocoDataset(
        train_split, transform=transform, mix=mix, seed=config.seed,
        least_side=least_side(config.augment),
    )  # fmt: skip
    val = CocoDataset(val_split)
    summary = {
        "dataset": folder_name(data_dir),
        "train_images": len(train),
        "val_images": len(val),
        "classes": [info.name for info in train.classes],
    }
    if val_fraction is not None:
        summary["val_fraction"] = val_fraction
    for name, split in (("train", train_split), ("val", val_split)):
        summary[f"{name}_annotations"] = split.annotations.file.name
        summary[f"{name}_sha256"] = split.annotations.sha256
        summary[f"{name}_files"] = split.files_digest()
    report = DataReport(
        name,
        splits={"train": train_split, "val": val_split},
        faults={"train": train_faults, "val": val_faults},
    )
    return RunData(train, val, train.classes, summary, report)


def _open_digits(config: TrainConfig) -> RunData:
    num_images = config.epoch_images or DIGITS_EPOCH_IMAGES
    train, val = (
        DigitsDataset("train", seed=config.seed, num_images=num_images),
        DigitsDataset("val"),
    )
    summary = {"dataset": "digits", "train_images": len(train), "val_images": len(val)}
    return RunData(train, val, train.classes, summary)


def largest_images(dataset: Any, config: TrainConfig) -> tuple[int, int]:
    """The largest height and width that a training batch can have, in pixels."""
    if config.dataset == "digits":  # images of the size they are trained with
        height, width = dataset.sizes.max(axis=0).tolist()
        return height, width
    return largest_size(dataset.sizes, config.augment, preprocess=config.preprocess)


def epoch_batches(
    dataset: Any, config: TrainConfig, *, epoch: int, skip_steps: int = 0
) -> Iterator[list[MicroBatch]]:
    """This process's batches of one epoch, step by step; the last step may have fewer.

    An image depends only on (seed, epoch, index), a step only on the configuration: both are the
    same for any number of processes and workers, and after an interruption.

    Raises:
        LoadingFailed: an image cannot be loaded, or a worker was killed.
    """
    dataset.set_epoch(epoch)  # before the workers start and copy the data set
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(dataset), generator=generator).tolist()
    batches = batch_by_shape(order, dataset.is_portrait, batch_size=config.batch_size)
    num_parts = parts_per_batch(config, num_processes())
    shares = [
        share_of_step(
            batches[start : start + config.accumulation_steps],
            num_parts=num_parts,
            num_processes=num_processes(),
        )[process_index()]
        for start in range(0, len(batches), config.accumulation_steps)
    ][skip_steps:]
    make = partial(_make_batch, dataset, min_side=config.preprocess.min_side)
    parts = [part for share in shares for part in share]
    loaded = work_ahead(make, parts, num_workers=config.num_workers)
    for share in shares:
        yield list(map(unpack, islice(loaded, len(share))))


def parts_per_batch(config: TrainConfig, num_processes: int) -> int:
    """Into how many parts a batch is divided to give every process work in a step.

    Batches are not divided if there are enough of them. Trained batch norm uses the statistics of
    one batch, so with it, all processes work on the same batch.

    Raises:
        ValueError: there are too few images in a step.
    """
    if config.model.train_batch_norm:
        parts = num_processes
    else:
        parts = num_processes // gcd(num_processes, config.accumulation_steps)
    if parts > config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} x accumulation_steps {config.accumulation_steps} "
            f"leaves some of {num_processes} processes without images: raise batch_size to "
            f"{parts} (and lower accumulation_steps by the same factor), or start fewer "
            "processes"
        )
    return parts


def share_of_step(
    batches: Sequence[list[int]], *, num_parts: int, num_processes: int
) -> list[list[list[int]]]:
    """The parts of a step's batches by process; all processes have the same number of parts.

    Every batch is divided into `num_parts` of nearly equal size. If the last step of an epoch has
    too few images, some parts are empty.
    """
    parts = [
        [int(index) for index in part]
        for batch in batches
        for part in np.array_split(np.array(batch, np.int64), num_parts)
    ]
    parts += [[]] * (-len(parts) % num_processes)
    return [parts[process::num_processes] for process in range(num_processes)]


def batch_by_shape(
    order: Sequence[int], is_portrait: np.ndarray, *, batch_size: int
) -> list[list[int]]:
    """Batches of only portraits or only landscapes; the images left at the end are mixed.

    Images of similar shape need less padding. Source: the published training groups them so
    (mmdetection, `AspectRatioBatchSampler`).

    Args:
        order: indices of images.
        is_portrait: (I,) bool, by index: taller than wide.
    """
    batches: list[list[int]] = []
    waiting: dict[bool, list[int]] = {True: [], False: []}
    for index in order:
        group = waiting[bool(is_portrait[index])]
        group.append(index)
        if len(group) == batch_size:
            batches.append(group.copy())
            group.clear()
    rest = waiting[True] + waiting[False]
    batches += [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]
    return batches


def _make_batch(dataset: Any, indices: list[int], *, min_side: int) -> Packed:
    if not indices:
        nothing = torch.zeros(0, 64, 64, 3, dtype=torch.uint8)
        return pack((nothing, nothing[..., 0].bool(), []))
    return pack(collate([dataset[index] for index in indices], min_side))


def steps_per_epoch(num_images: int, config: TrainConfig) -> int:
    """Optimiser steps in a pass over the data; the last batch may be smaller."""
    return -(-num_images // (config.batch_size * config.accumulation_steps))
