"""COCO AP of anything that detects: a checkpoint here, the engine of a bundle in `export`.

    python -m model.evaluate --checkpoint FILE [--data DIR --split val] [--out results.json]

Images are prepared and detections scaled by `bundle`, as the service does it, so the AP printed
here is the AP of what is served. Without --data a model of the demo's classes is evaluated on
the demo's validation set. `--results FILE` scores detections that are already in COCO's format.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bundle.atomic import write_atomically
from bundle.manifest import ClassInfo
from bundle.postprocess import to_detections
from bundle.preprocess import Geometry, Preprocess, pad_batch, prepare
from model.checkpoint import build_model, load_checkpoint
from model.data import digits
from model.data.check import check_dataset, describe
from model.data.coco import CocoDataset, locate
from model.evaluation.coco_metrics import Metrics, format_report, score
from model.network.inference import DetectionModel
from model.progress import progress_bar

_LACKS_TARGETS = ("no-annotations", "no-targets")  # fatal for training; here AP is undefined

Predict = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class EvaluationData(Protocol):
    """What `CocoDataset` and `DigitsDataset` have in common for evaluation."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]: ...
    def __len__(self) -> int: ...
    def image_id(self, index: int) -> int: ...
    def read_image(self, index: int) -> np.ndarray: ...
    def ground_truth(self) -> dict[str, Any]: ...


def evaluate(
    predict: Predict,
    dataset: EvaluationData,
    preprocess: Preprocess,
    *,
    classes: Sequence[ClassInfo],
    batch_size: int = 1,
    limit: int | None = None,
) -> Metrics:
    """Run a detector over a data set and score it.

    Args:
        predict: from images (B, H, W, 3) uint8 RGB and padding_mask (B, H, W) bool to scores
            (B, N), labels (B, N) and boxes (B, N, 4), as `engines.base` describes.
        classes: what the labels of `predict` mean.
        batch_size: 1 is how AP is published: no padding.
        limit: evaluate the first so many images only.

    Raises:
        ValueError: the data set's classes are not among the model's, the data set is empty, an
            image cannot be read, or an output is not finite.
    """
    require_classes(classes, dataset.classes)
    num_images = len(dataset) if limit is None else min(limit, len(dataset))
    if num_images < 1:
        raise ValueError("expected at least one image to evaluate on, got none")
    results: list[dict[str, Any]] = []
    with progress_bar(total=num_images, desc="evaluating", unit=" images", leave=False) as bar:
        for start in range(0, num_images, batch_size):
            indices = range(start, min(start + batch_size, num_images))
            prepared = [prepare(dataset.read_image(index), preprocess) for index in indices]
            images, padding_mask = pad_batch([image for image, _ in prepared], preprocess.min_side)
            output = predict(images, padding_mask)
            for index, (_, geometry), row in zip(indices, prepared, zip(*output, strict=True),
                                                 strict=True):  # fmt: skip
                results += _to_results(dataset.image_id(index), geometry, row, classes)
            bar.update(len(indices))
    image_ids = {dataset.image_id(index) for index in range(num_images)}
    return score(_restrict(dataset.ground_truth(), image_ids), results)


def _to_results(
    image_id: int,
    geometry: Geometry,
    row: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: Sequence[ClassInfo],
) -> list[dict[str, Any]]:
    scores, labels, boxes = row
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError(f"the model's output for image {image_id} is not finite")
    found = to_detections(scores, labels, boxes, geometry)
    return [
        {"image_id": image_id, "category_id": classes[label].id, "bbox": box, "score": value}
        for box, value, label in zip(
            found.boxes_xywh_px.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


def _restrict(ground_truth: dict[str, Any], image_ids: set[int]) -> dict[str, Any]:
    """The part of the ground truth that is about these images."""
    images = [image for image in ground_truth["images"] if image["id"] in image_ids]
    annotations = [a for a in ground_truth["annotations"] if a["image_id"] in image_ids]
    return {**ground_truth, "images": images, "annotations": annotations}


def require_classes(classes: Sequence[ClassInfo], expected: Sequence[ClassInfo]) -> None:
    """ValueError unless the model knows every class of the data set by the same id and name.

    Their order does not matter, and the model may know more.
    """
    unknown = [f"{info.id} {info.name}" for info in expected if info not in classes]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the data set's {len(expected)} classes are none of the model's "
            f"{len(classes)}: {', '.join(unknown[:5])}; the model's begin with "
            + ", ".join(f"{info.id} {info.name}" for info in classes[:5])
        )


def torch_predictor(model: DetectionModel) -> Predict:
    """The model, set to evaluation, as a function of arrays; runs where its parameters lie."""
    model.eval()
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(
        images: np.ndarray, padding_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = torch.from_numpy(images).to(device), torch.from_numpy(padding_mask).to(device)
        scores, labels, boxes = (output.cpu().numpy() for output in model(*inputs))
        return scores, labels, boxes

    return predict


def open_evaluation_data(
    data_dir: Path | None, split: str, classes: Sequence[ClassInfo]
) -> EvaluationData:
    """The data set in a directory, or without one the demo's if these are its classes.

    Raises:
        ValueError: neither, or the data set has faults that would make AP wrong; names them.
    """
    if data_dir is None:
        if tuple(classes) != digits.CLASSES:
            raise ValueError(
                "expected --data DIR, a data set in COCO's format; only a model of the demo's "
                f"{len(digits.CLASSES)} digits is evaluated without, this one has "
                f"{len(classes)} classes"
            )
        return digits.DigitsDataset("val")
    annotation_file, image_dir = locate(data_dir, split)
    faults = [
        fault
        for fault in check_dataset(annotation_file, image_dir)
        if fault.fatal and fault.kind not in _LACKS_TARGETS
    ]
    if faults:
        raise ValueError(f"{annotation_file}:\n{describe(faults, limit=10)}")
    return CocoDataset(annotation_file, image_dir)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the evaluation of a checkpoint and of a bundle have in common."""
    parser.add_argument("--data", type=Path, help="data set in COCO's format; default: the demo's")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--out", type=Path, help="write the detections here, as COCO results JSON")
    parser.add_argument("--batch-size", type=_positive, default=1, help="default: 1, no padding")
    parser.add_argument("--limit", type=_positive, help="evaluate the first so many images only")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def evaluate_command(
    predict: Predict,
    preprocess: Preprocess,
    classes: Sequence[ClassInfo],
    args: argparse.Namespace,
) -> Metrics:
    """Evaluate as `add_arguments` says: print the report, write the results."""
    dataset = open_evaluation_data(args.data, args.split, classes)
    metrics = evaluate(
        predict, dataset, preprocess, classes=classes, batch_size=args.batch_size, limit=args.limit
    )
    print(format_report(metrics))
    if args.out is not None:
        write_atomically(args.out, json.dumps(metrics.results).encode())
        print(f"{len(metrics.results)} detections in {args.out}")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Print the COCO metrics of a checkpoint, or of detections made before."""
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path)
    source.add_argument("--results", type=Path, help="detections in COCO's results format")
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        if args.results is not None:
            dataset = open_evaluation_data(args.data, args.split, digits.CLASSES)
            results = json.loads(args.results.read_bytes())
            print(format_report(score(dataset.ground_truth(), results)))
        else:
            checkpoint = load_checkpoint(args.checkpoint)
            model = DetectionModel(build_model(checkpoint), checkpoint.config.preprocess)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            evaluate_command(torch_predictor(model), model.preprocess, checkpoint.classes, args)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
