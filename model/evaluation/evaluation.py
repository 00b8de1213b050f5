"""A detector run over a data set, image by image as the service does it, and scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle.manifest import ClassInfo
from bundle.postprocess import to_detections
from bundle.preprocess import Geometry, Preprocess, pad_batch, prepare
from model.data.evaluation_data import EvaluationData, require_classes
from model.evaluation.coco_metrics import Metrics, score
from model.network.inference import Predict
from model.progress import progress_bar


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
