"""What the service answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Detection:
    """One object; bbox is (x, y, width, height) in pixels of the image as displayed."""

    bbox: tuple[float, float, float, float]
    category_id: int
    category_name: str
    score: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The detections in one image, best first; width and height are those of it as displayed."""

    image_id: int
    file_name: str | None
    width: int
    height: int
    detections: tuple[Detection, ...]

    @classmethod
    def from_json(cls, result: Mapping[str, Any]) -> "ImageResult":
        """One of the `results` of an answer; unknown fields are ignored."""
        detections = tuple(
            Detection(
                bbox=tuple(one["bbox"]),
                category_id=one["category_id"],
                category_name=one["category_name"],
                score=one["score"],
            )
            for one in result["detections"]
        )
        plain = {name: result[name] for name in ("image_id", "file_name", "width", "height")}
        return cls(**plain, detections=detections)


def coco_results(results: Iterable[ImageResult]) -> list[dict[str, Any]]:
    """The detections in COCO's results format: write them with json.dump for an evaluator.

    For an AP comparable with published figures, detect with threshold=0, and pass the data set's
    image ids as `image_ids`.
    """
    return [
        {
            "image_id": result.image_id,
            "category_id": detection.category_id,
            "bbox": list(detection.bbox),
            "score": detection.score,
        }
        for result in results
        for detection in result.detections
    ]
