"""What is wrong in each image at given thresholds, and which classes are taken for which."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.thresholds import DEFAULT_THRESHOLD, Thresholds
from model.evaluation.best_thresholds import IOU, NO_BOX, ON_CROWD
from model.evaluation.coco_metrics import Metrics
from model.evaluation.overlap import overlaps

Pair = tuple[dict[str, Any], dict[str, Any]]  # a detection, and the annotation that it finds


@dataclass
class ImageErrors:
    """The detections and boxes of an image, each in one list.

    Attributes:
        right: detections with the boxes of their class that they find.
        confused: detections with boxes of another class.
        false: detections where there is no box, or one that another detection has found.
        missed: boxes that no detection finds.
    """

    image_id: int
    right: list[Pair] = field(default_factory=list)
    confused: list[Pair] = field(default_factory=list)
    false: list[dict[str, Any]] = field(default_factory=list)
    missed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        """Boxes missed or taken for another class, and detections of nothing."""
        return len(self.confused) + len(self.false) + len(self.missed)

    @property
    def wrong_score(self) -> float:
        """The sum of the scores of detections that are wrong."""
        wrong = [*self.false, *(detection for detection, _ in self.confused)]
        return float(sum(detection["score"] for detection in wrong))


def lowest_scores(thresholds: Thresholds | None, ground_truth: dict[str, Any]) -> dict[int, float]:
    """Category id -> threshold, as the service applies them."""
    ids = [category["id"] for category in ground_truth["categories"]]
    if thresholds is None:
        return dict.fromkeys(ids, DEFAULT_THRESHOLD)
    return dict(zip(ids, thresholds.lowest_scores(ids).tolist(), strict=True))


def find_errors(metrics: Metrics, lowest: Mapping[int, float]) -> list[ImageErrors]:
    """The errors of every image, in the order of the ground truth.

    First each box is found by one detection of its class, as for AP. What is left is paired across
    classes: in order of score, each detection takes the box with which it has the highest IoU, if
    that is at least 0.5. Crowds and detections on them count neither way.

    Args:
        lowest: category id -> lowest score of a detection that counts.
    """
    annotations = metrics.ground_truth["annotations"]
    by_image = {image["id"]: ImageErrors(image["id"]) for image in metrics.ground_truth["images"]}
    found: set[int] = set()
    for entry, box in zip(metrics.results, metrics.matched.tolist(), strict=True):
        if box == ON_CROWD or np.float32(entry["score"]) < np.float32(lowest[entry["category_id"]]):
            continue
        image = by_image[entry["image_id"]]
        if box == NO_BOX:
            image.false.append(entry)
        else:
            image.right.append((entry, annotations[box]))
            found.add(box)
    for position, annotation in enumerate(annotations):
        if position not in found and not annotation.get("iscrowd", 0):
            by_image[annotation["image_id"]].missed.append(annotation)
    for image in by_image.values():
        _pair_across_classes(image)
    return list(by_image.values())


def _pair_across_classes(image: ImageErrors) -> None:
    remaining, image.false = sorted(image.false, key=lambda entry: -entry["score"]), []
    for detection in remaining:
        others = [box for box in image.missed if box["category_id"] != detection["category_id"]]
        shares = overlaps(detection["bbox"], [box["bbox"] for box in others])
        if shares.size and shares.max() >= IOU:
            box = others[int(shares.argmax())]
            image.missed = [one for one in image.missed if one is not box]
            image.confused.append((detection, box))
        else:
            image.false.append(detection)


def worst(errors: Sequence[ImageErrors], limit: int) -> list[ImageErrors]:
    """The images with the most errors; of as many, those with the highest wrong scores."""
    with_errors = [image for image in errors if image.num_errors]
    return sorted(with_errors, key=lambda one: (-one.num_errors, -one.wrong_score))[:limit]


@dataclass(frozen=True)
class Confusion:
    """How many boxes of a class (row) were detected as which class (column).

    Attributes:
        names: of the classes, K of them.
        counts: (K + 1, K + 1) int64. The last row has the detections of nothing, the last column
            the boxes that were missed.
    """

    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, errors: Sequence[ImageErrors], ground_truth: dict[str, Any]) -> "Confusion":
        """The matrix of all images; classes in the order of the ground truth's categories."""
        categories = ground_truth["categories"]
        index = {category["id"]: number for number, category in enumerate(categories)}
        size = len(categories) + 1
        counts = np.zeros((size, size), np.int64)
        for cell in _cells(errors):
            counts[tuple(index.get(category_id, size - 1) for category_id in cell)] += 1
        return cls(tuple(category["name"] for category in categories), counts)

    def limited(self, limit: int) -> "Confusion":
        """At most so many classes, those with the most errors; the others are summed as one."""
        num_classes = len(self.names)
        if num_classes <= limit:
            return self
        wrong = self.counts.sum(axis=0) + self.counts.sum(axis=1) - 2 * self.counts.diagonal()
        kept = np.sort(np.argsort(-wrong[:num_classes], kind="stable")[: limit - 1])
        place = np.full(num_classes + 1, limit - 1)
        place[kept], place[-1] = np.arange(limit - 1), limit
        counts = np.zeros((limit + 1, limit + 1), np.int64)
        np.add.at(counts, (place[:, None], place[None, :]), self.counts)
        others = f"{num_classes - limit + 1} other classes"
        return Confusion((*(self.names[number] for number in kept), others), counts)

    def most_common(self, limit: int) -> list[tuple[str, str, int]]:
        """The most common confusions: class, the class it was taken for, how often."""
        between = self.counts[:-1, :-1] * (1 - np.eye(len(self.names), dtype=np.int64))
        order = np.argsort(-between, axis=None, kind="stable")[:limit]
        rows, columns = np.unravel_index(order, between.shape)
        return [
            (self.names[row], self.names[column], int(between[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if between[row, column]
        ]


def _cells(errors: Sequence[ImageErrors]) -> Iterator[tuple[int | None, int | None]]:
    """Category ids of box and detection; None where there is none."""
    for image in errors:
        for detection, box in (*image.right, *image.confused):
            yield box["category_id"], detection["category_id"]
        for detection in image.false:
            yield None, detection["category_id"]
        for box in image.missed:
            yield box["category_id"], None
