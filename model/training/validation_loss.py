"""The training loss on the validation images, from the forward passes of their evaluation."""

from collections.abc import Sequence
from typing import Any

import torch

from bundle.manifest import ClassInfo
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Uint8Array
from model.config import TrainConfig
from model.data.split import clip_box
from model.data.transforms import xyxy_to_cxcywh
from model.distributed import alone, gather
from model.network.inference import DetectionModel
from model.training.losses import compute_losses, loss_normalisers


class ValidationLoss:
    """A predictor that adds up the loss of what it predicts, one image after another.

    As in training, the sum of all terms is divided by the matched pairs, here those of all images.

    Args:
        model: in eval mode, so there is no dropout, and padding never counts.
        ground_truth: of the images, in COCO's format.
        classes: of the model, in the order of its labels.
    """

    def __init__(
        self,
        model: DetectionModel,
        config: TrainConfig,
        *,
        ground_truth: dict[str, Any],
        classes: Sequence[ClassInfo],
    ) -> None:
        self._model = model.eval()
        self._config = config
        self._targets = _targets(ground_truth, classes)
        with alone():  # every process knows all images
            self._normalisers = loss_normalisers(
                list(self._targets.values()),
                num_queries=config.model.num_queries, num_tokens=None, config=config.loss,
            )  # fmt: skip
        self._sum = 0.0
        self._outputs: dict[str, Any] = {}

    @torch.inference_mode()
    def predict(self, images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        """As the function that `torch_predictor` returns; `add` then counts the loss."""
        device = next(self._model.parameters()).device
        arrays = torch.from_numpy(images).to(device), torch.from_numpy(padding_mask).to(device)
        self._outputs = self._model.raw_outputs(*arrays)
        return RawOutput(*(part.cpu().numpy() for part in self._model.decode(self._outputs)))

    @torch.inference_mode()
    def add(self, image_ids: Sequence[int]) -> None:
        """Add the loss of the images that were predicted last."""
        device = next(self._model.parameters()).device
        targets = [
            {name: value.to(device) for name, value in self._targets[image_id].items()}
            for image_id in image_ids
        ]
        terms = compute_losses(
            self._outputs, targets, config=self._config.loss, normalisers=self._normalisers
        )
        self._sum += float(torch.stack(list(terms.values())).sum())

    def total(self) -> float:
        """The loss over the images of all processes."""
        return sum(gather(self._sum))


def _targets(ground_truth: dict[str, Any], classes: Sequence[ClassInfo]) -> dict[int, Any]:
    """By image id, what `compute_losses` takes; crowds and boxes of no size are no targets."""
    label_of = {info.id: label for label, info in enumerate(classes)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    boxes: dict[int, list[tuple[float, ...]]] = {image_id: [] for image_id in sizes}
    labels: dict[int, list[int]] = {image_id: [] for image_id in sizes}
    for entry in ground_truth["annotations"]:
        box = clip_box(tuple(entry["bbox"]), sizes[entry["image_id"]])
        if box is not None and not entry["iscrowd"]:
            boxes[entry["image_id"]].append(box)
            labels[entry["image_id"]].append(label_of[entry["category_id"]])
    return {
        image_id: {
            "labels": torch.tensor(labels[image_id], dtype=torch.int64),
            "boxes": xyxy_to_cxcywh(torch.tensor(boxes[image_id]).view(-1, 4))
            / torch.tensor([width, height, width, height]),
            "size": torch.tensor([height, width]),
        }
        for image_id, (height, width) in sizes.items()
    }
