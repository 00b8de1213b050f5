"""Compares AP with and without padding; equal if answers depend on the image alone."""

from collections.abc import Sequence

import numpy as np

from bundle.detect import Predict
from bundle.manifest import ClassInfo
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Preprocess, Uint8Array
from model.data.evaluation_data import EvaluationData
from model.evaluation.coco_metrics import Metrics
from model.evaluation.evaluation import evaluate


def with_padding(predict: Predict, rows: int, *, columns: int) -> Predict:
    """The same detector with this much more padding at the bottom and right, in pixels."""

    def run(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        more = ((0, 0), (0, rows), (0, columns))
        return predict(
            np.pad(images, (*more, (0, 0))), np.pad(padding_mask, more, constant_values=True)
        )

    return run


def quarter_padding(preprocess: Preprocess) -> tuple[int, int]:
    """Rows and columns to compare AP by: 128 x 128 pixels become 160 x 192."""
    return preprocess.short_side // 4, preprocess.short_side // 2


def padding_report(
    predict: Predict,
    dataset: EvaluationData,
    *,
    preprocess: Preprocess,
    classes: Sequence[ClassInfo],
    alone: Metrics,
) -> str:
    """A sentence with the given AP of images alone and the AP of the same images padded."""
    rows, columns = quarter_padding(preprocess)
    padded = evaluate(
        with_padding(predict, rows, columns=columns),
        dataset,
        preprocess=preprocess,
        classes=classes,
    )
    return (
        f"AP {alone.numbers['AP']:.4f} of images alone, {padded.numbers['AP']:.4f} with "
        f"{rows} rows and {columns} columns of padding"
    )
