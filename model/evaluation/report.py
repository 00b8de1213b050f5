"""What the commands that evaluate do: run, print the report, write the results."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from bundle.atomic import write_atomically
from bundle.detect import Predict
from bundle.manifest import ClassInfo
from bundle.preprocess import Preprocess
from bundle.terminal import printable
from bundle.thresholds import Thresholds
from model.data import digits
from model.data.evaluation_data import EvaluationData, open_evaluation_data
from model.evaluation.coco_metrics import Metrics, format_report, score
from model.evaluation.diagnosis import explain
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import with_padding
from model.evaluation.results_format import read_results, with_text_ids

log = logging.getLogger(__name__)


def evaluate_command(
    predict: Predict,
    preprocess: Preprocess,
    *,
    classes: Sequence[ClassInfo],
    training: Mapping[str, Any],
    args: argparse.Namespace,
) -> Metrics:
    """Evaluate as `add_arguments` of model.evaluate says: print the report, write the results.

    Args:
        training: where the weights come from, as stored in their checkpoint.
    """
    warn_of_training_images(training, args)
    dataset = _open_data(args, classes)
    rows, columns = args.padding
    metrics = evaluate(
        with_padding(predict, rows, columns=columns),
        dataset,
        preprocess=preprocess,
        classes=classes,
        batch_size=args.batch_size,
        limit=args.limit,
    )
    print_report(metrics)
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
    if fraction is not None and data.get("dataset") == args.data.name:
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


def print_report(metrics: Metrics) -> None:
    """The numbers, and what may be wrong where they are near 0."""
    print(printable(format_report(metrics)))
    for sentence in explain(metrics):
        print(printable(f"\nnote: {sentence}"))


def score_results(args: argparse.Namespace) -> None:
    """Print the report on detections that were made before."""
    dataset = _open_data(args, digits.CLASSES)
    ground_truth = dataset.ground_truth()
    print_report(score(ground_truth, read_results(args.results, ground_truth)))
