"""From uint8 images to detections: the model that evaluation runs and export turns into a graph."""

from typing import Any

import torch
from torch import Tensor, nn

from bundle.detect import Predict
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Preprocess, Uint8Array
from model.network.boxes import cxcywh_to_xyxy
from model.network.deformable_detr import DeformableDetr


def normalise(images: Tensor, padding_mask: Tensor, *, preprocess: Preprocess) -> Tensor:
    """Network input (B, 3, H, W) float32 from images (B, H, W, 3) uint8 RGB.

    Padding is zero *after* normalisation, as in training.
    """
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
    )
    if images.device.type != "cpu":  # an exported graph would keep the copies
        mean, std = (values.to(images.device, non_blocking=True) for values in (mean, std))
    # Here a runtime transposes the pixels (as floats, since TensorRT cannot transpose bytes) and
    # then computes along rows. PyTorch moves nothing: channels stay last in memory, even through
    # where(), which makes convolutions faster.
    normalised = (images.float().permute(0, 3, 1, 2) - mean) / std
    return torch.where(padding_mask[:, None], 0.0, normalised)


def decode_detections(
    pred_logits: Tensor, pred_boxes: Tensor, *, num_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs of every image, best first.

    Args:
        pred_logits: (B, Q, K). pred_boxes: (B, Q, 4) normalised cxcywh.
        num_detections: N; at most Q * K are returned.

    Returns:
        scores (B, N) float32, labels (B, N) int64 and boxes (B, N, 4) float32: xyxy, normalised
        by the un-padded image and clamped to it. A query may appear with several classes.
    """
    num_queries, num_classes = pred_logits.shape[1:]
    count = min(num_detections, num_queries * num_classes)
    scores, index = pred_logits.float().sigmoid().flatten(1).topk(count, dim=1)
    queries = index // num_classes
    boxes = cxcywh_to_xyxy(pred_boxes.float()).clamp(0.0, 1.0)
    boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    return scores, index % num_classes, boxes


class DetectionModel(nn.Module):
    """The detector with its input and output processing: the graph that is exported and served."""

    def __init__(self, detector: DeformableDetr, preprocess: Preprocess) -> None:
        super().__init__()
        self.detector = detector
        self.preprocess = preprocess

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of images (B, H, W, 3) uint8 RGB with padding_mask (B, H, W) bool.

        Returns scores, labels and boxes as `decode_detections` does.
        """
        return self.decode(self.raw_outputs(images, padding_mask))

    def raw_outputs(self, images: Tensor, padding_mask: Tensor) -> dict[str, Any]:
        """What the detector returns for images (B, H, W, 3) uint8 RGB and padding (B, H, W)."""
        pixels = normalise(images, padding_mask, preprocess=self.preprocess)
        outputs: dict[str, Any] = self.detector(pixels, padding_mask)
        return outputs

    def decode(self, outputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, N), labels (B, N) and boxes (B, N, 4), as `decode_detections` gives them."""
        return decode_detections(
            outputs["pred_logits"],
            outputs["pred_boxes"],
            num_detections=self.detector.config.num_detections,
        )


def torch_predictor(model: DetectionModel) -> Predict:
    """The model, set to eval mode, as a function of arrays; runs on the model's device."""
    model.eval()
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        inputs = torch.from_numpy(images).to(device), torch.from_numpy(padding_mask).to(device)
        return RawOutput(*(output.cpu().numpy() for output in model(*inputs)))

    return predict
