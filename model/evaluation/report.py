"""What the commands that evaluate do: run, print the report, write the results."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.atomic import write_atomically
from bundle.detect import Predict
from bundle.device_image import Decode
from bundle.manifest import ClassInfo
from bundle.preprocess import Preprocess
from bundle.terminal import printable
from bundle.thresholds import Thresholds
from model.data import digits
from model.data.evaluation_data import EvaluationData, decoded_by, open_evaluation_data
from model.data.place import folder_name
from model.evaluation.coco_metrics import Metrics, format_report, score
from model.evaluation.diagnosis import explain
from model.evaluation.epoch_table import CSV_FILE
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import quarter_padding, with_padding
from model.evaluation.results_format import read_results, with_text_ids
from model.evaluation.results_page import Subject, facts_of, write_report

log = logging.getLogger(__name__)


def evaluate_command(
    predict: Predict,
    preprocess: Preprocess,
    *,
    model: Path,
    classes: Sequence[ClassInfo],
    training: Mapping[str, Any],
    facts: Mapping[str, str],
    args: argparse.Namespace,
    decode: Decode | None = None,
) -> Metrics:
    """Evaluate as `add_arguments` of model.evaluate says: print the report, write the results.

    Args:
        model: the checkpoint or bundle; its page has learning curves if metrics.csv is beside it.
        training: where the weights come from, as stored in their checkpoint.
        facts: more about the model, for the page.
        decode: decodes the images instead of `decode_image`.

    Raises:
        ValueError: as `open_evaluation_data`, `decoded_by` and `evaluate`.
    """
    warn_of_training_images(training, args)
    dataset = _open_data(args, classes)
    read = None if decode is None else decoded_by(dataset, decode)
    rows, columns = args.padding
    metrics = evaluate(
        with_padding(predict, rows, columns=columns),
        dataset,
        preprocess=preprocess,
        classes=classes,
        batch_size=args.batch_size,
        limit=args.limit,
        read=read,
    )
    notes = print_report(metrics)
    if args.report is not None:
        is_of_run = training.get("source") == "model.train"
        subject = Subject(
            str(model),
            {**facts, **dict(facts_of(training)), **_conditions(args, preprocess)},
            epochs=model.parent / CSV_FILE if is_of_run else None,
            epoch=training.get("epochs") if is_of_run else None,
            padding=_say_padding(args.padding, preprocess),
            notes=notes,
        )
        write_report(metrics, dataset, subject=subject, path=args.report)
    if args.out is not None:
        results = with_text_ids(metrics.results, metrics.ground_truth)
        write_atomically(args.out, json.dumps(results).encode())
        print(f"detections in {args.out}: {len(metrics.results)}")
    return metrics


def warn_of_training_images(training: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Warn where training set a part of these images aside and evaluation takes all of them."""
    data = training.get("data")
    if not isinstance(data, dict) or args.data is None or args.val_fraction is not None:
        return
    fraction = data.get("val_fraction")
    if fraction is not None and data.get("dataset") == folder_name(args.data):
        log.warning(
            "this model was trained with VAL_FRACTION=%g: without it, images of training are "
            "evaluated too, and AP is too high",
            fraction,
        )


def _open_data(args: argparse.Namespace, classes: Sequence[ClassInfo]) -> EvaluationData:
    return open_evaluation_data(
        args.data, args.split, classes=classes, val_fraction=args.val_fraction
    )


def found_thresholds(metrics: Metrics) -> Thresholds:
    """The thresholds to be saved; ValueError where no detection is right."""
    if metrics.thresholds is None:
        raise ValueError("no detection is right, so there are no thresholds to save")
    print(f"saved: best F1 at {metrics.thresholds.overall}")
    return metrics.thresholds


def print_report(metrics: Metrics) -> list[str]:
    """Print the numbers and what may be wrong where they are near 0; returns the latter."""
    print(printable(format_report(metrics)))
    notes = explain(metrics)
    for sentence in notes:
        print(printable(f"\nnote: {sentence}"))
    return notes


def _conditions(args: argparse.Namespace, preprocess: Preprocess) -> dict[str, str]:
    """How it was evaluated, for the page."""
    rows, columns = args.padding
    limit = {} if args.limit is None else {"limited to": f"the first {args.limit} images"}
    return {
        "image size": f"short side {preprocess.short_side}, long side at most "
        f"{preprocess.long_side} pixels",
        "batch size": f"{args.batch_size}",
        "padding": f"{rows} rows and {columns} columns",
        "data": f"{args.data or 'the demo'}, split {args.split}",
        **limit,
    }


def _say_padding(added: tuple[int, int], preprocess: Preprocess) -> str:
    if any(added):
        return f"Every image had {added[0]} more rows and {added[1]} more columns of padding."
    rows, columns = quarter_padding(preprocess)
    return (
        "AP with more padding was not measured here. make report with ARGS='--padding "
        f"{rows}x{columns}' evaluates every image with {rows} more rows and {columns} more columns "
        "of padding; AP should be the same. A training run measures both at its end."
    )


def score_results(args: argparse.Namespace) -> None:
    """Print the report on detections that were made before."""
    dataset = _open_data(args, digits.CLASSES)
    ground_truth = dataset.ground_truth()
    metrics = score(ground_truth, read_results(args.results, ground_truth))
    notes = print_report(metrics)
    if args.report is not None:
        padding = "These detections were made before, so padding is not known."
        subject = Subject(str(args.results), padding=padding, notes=notes)
        write_report(metrics, dataset, subject=subject, path=args.report)
