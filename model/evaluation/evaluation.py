"""Runs a detector over a data set, processing images as the service does, and scores it."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from bundle.detect import Found, Predict, run_images
from bundle.device_image import Decoded
from bundle.manifest import ClassInfo
from bundle.postprocess import to_detections
from bundle.preprocess import Preprocess
from model.data.evaluation_data import EvaluationData, require_classes
from model.distributed import gather, is_main, num_processes, process_index
from model.evaluation.coco_metrics import Metrics, score
from model.progress import progress_bar

Follow = Callable[[Sequence[int]], None]


def evaluate(
    predict: Predict,
    dataset: EvaluationData,
    *,
    preprocess: Preprocess,
    classes: Sequence[ClassInfo],
    batch_size: int = 1,
    limit: int | None = None,
    read: Callable[[int], Decoded] | None = None,
    follow: Follow | None = None,
) -> Metrics:
    """Run a detector over a data set and score it.

    The processes of a run share the images, and all return the same.

    Args:
        predict: `run` of an engine, or `torch_predictor` of a model.
        classes: of the labels of `predict`.
        batch_size: 1, with which AP is published, means no padding.
        limit: evaluate only this many images, the first ones.
        read: an image of the data set by its index; by default `dataset.read_image`.
        follow: called after each batch that `predict` ran, with the ids of its images.

    Raises:
        ValueError: the data set's classes are not among the model's, the data set is empty, an
            image cannot be read, or an output is not finite.
    """
    require_classes(classes, dataset.classes)
    num_images = len(dataset) if limit is None else min(limit, len(dataset))
    if num_images < 1:
        raise ValueError("expected at least one image to evaluate on, got none")
    starts = range(0, num_images, batch_size)[process_index() :: num_processes()]
    found = []  # by batch
    with progress_bar(
        total=num_images, desc="evaluating", unit=" images", leave=False, disable=not is_main()
    ) as bar:
        for start in starts:
            indices = range(start, min(start + batch_size, num_images))
            images = [(read or dataset.read_image)(index) for index in indices]
            outputs = run_images(predict, images, preprocess=preprocess)
            if follow is not None:
                follow([dataset.image_id(index) for index in indices])
            found.append([
                _to_results(dataset.image_id(index), output, classes)
                for index, output in zip(indices, outputs, strict=True)
            ])  # fmt: skip
            bar.update(min(len(indices) * num_processes(), num_images - bar.n))
    # As if one process had run all batches: AP depends on the order of equal scores.
    dealt = zip_longest(*gather(found), fillvalue=[])
    results = [entry for round_ in dealt for batch in round_ for image in batch for entry in image]
    image_ids = {dataset.image_id(index) for index in range(num_images)}
    return score(_restrict(dataset.ground_truth(), image_ids), results)


def _to_results(image_id: int, found: Found, classes: Sequence[ClassInfo]) -> list[dict[str, Any]]:
    if not (np.isfinite(found.output.scores).all() and np.isfinite(found.output.boxes).all()):
        raise ValueError(f"the model's output for image {image_id} is not finite")
    detections = to_detections(*found)
    return [
        {"image_id": image_id, "category_id": classes[label].id, "bbox": box, "score": value}
        for box, value, label in zip(
            detections.boxes_xywh_px.tolist(),
            detections.scores.tolist(),
            detections.labels.tolist(),
            strict=True,
        )
    ]


def _restrict(ground_truth: dict[str, Any], image_ids: set[int]) -> dict[str, Any]:
    """The ground truth of only these images."""
    images = [image for image in ground_truth["images"] if image["id"] in image_ids]
    annotations = [a for a in ground_truth["annotations"] if a["image_id"] in image_ids]
    return {**ground_truth, "images": images, "annotations": annotations}
