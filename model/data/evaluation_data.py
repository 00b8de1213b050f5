"""Data sets that a detector is evaluated on."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bundle.device_image import Decode, Decoded
from bundle.manifest import ClassInfo
from model.data import digits
from model.data.check import check_validation
from model.data.coco import CocoDataset
from model.data.data_set import open_data_set
from model.data.faults import Fault, describe
from model.data.split import Split

SHOWN_OF_A_KIND = 3
log = logging.getLogger(__name__)


class EvaluationData(Protocol):
    """What `CocoDataset` and `DigitsDataset` have in common for evaluation."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]: ...
    def __len__(self) -> int: ...
    def image_id(self, index: int) -> int: ...
    def read_image(self, index: int) -> np.ndarray: ...  # (h, w, 3) uint8 RGB, as displayed
    def ground_truth(self) -> dict[str, Any]: ...


def require_classes(classes: Sequence[ClassInfo], expected: Sequence[ClassInfo]) -> None:
    """Raise ValueError unless the model has every class of the data set, with its id and name.

    The order does not matter, and the model may have more classes.
    """
    unknown = [f"{info.id} {info.name}" for info in expected if info not in classes]
    if unknown:
        raise ValueError(
            f"classes of the data set that the model does not have: {len(unknown)} of "
            f"{len(expected)}, such as {', '.join(unknown[:5])}; the model has {len(classes)}, "
            "such as " + ", ".join(f"{info.id} {info.name}" for info in classes[:5])
        )


def open_evaluation_data(
    data_dir: Path | None,
    split: str,
    *,
    classes: Sequence[ClassInfo],
    val_fraction: float | None = None,
) -> EvaluationData:
    """The data set in a directory; without one, the demo's, if these are its classes.

    Raises:
        ValueError: neither is possible, or the data set has faults that make AP wrong; names them.
    """
    if data_dir is None:
        if tuple(classes) != digits.CLASSES:
            raise ValueError(
                "expected DATA=DIR (--data), a data set; only a model of the "
                f"demo's {len(digits.CLASSES)} digits can be evaluated without it, and this one "
                "has other classes"
            )
        return digits.DigitsDataset("val")
    data_set = open_data_set(data_dir, val_fraction)
    opened = data_set.open(split)
    log.info(data_set.describe([opened]))
    report_faults(opened, check_validation(opened))
    return CocoDataset(opened)


def decoded_by(dataset: EvaluationData, decode: Decode) -> Callable[[int], Decoded]:
    """Reads the images of a data set, by their index, with another decoder.

    Raises:
        ValueError: its images are not files.
    """
    if not isinstance(dataset, CocoDataset):
        raise ValueError(
            "expected DATA=DIR (--data), a data set of files: the demo's images are drawn"
        )
    return partial(dataset.read_with, decode)


def report_faults(split: Split, faults: Sequence[Fault]) -> None:
    """Log the faults, or raise them all in a ValueError if one is fatal."""
    if not faults:
        return
    report = f"{split.annotations.file}:\n{describe(faults, limit=SHOWN_OF_A_KIND)}"
    if any(fault.fatal for fault in faults):
        raise ValueError(report)
    log.warning(report)
