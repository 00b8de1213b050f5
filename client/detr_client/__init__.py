"""Client for the object detection service detr-serve."""

from detr_client.client import AsyncDetrClient, DetrClient
from detr_client.errors import DetrError, Unreachable
from detr_client.exchange import Batching
from detr_client.options import Options
from detr_client.results import Detection, ImageResult, coco_results
from detr_client.retries import Retries

__all__ = [
    "AsyncDetrClient",
    "Batching",
    "Detection",
    "DetrClient",
    "DetrError",
    "ImageResult",
    "Options",
    "Retries",
    "Unreachable",
    "coco_results",
]
