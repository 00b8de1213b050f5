"""Outputs, losses and gradients, compared with mmdetection's own code.

tests/data/parity holds them for synthetic weights, which are rebuilt here in mmdetection's file
formats and read by the converter that reads the published files.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.postprocess import ImageOutput, to_detections
from bundle.preprocess import Geometry
from model.checkpoints.checkpoint_file import Checkpoint
from model.checkpoints.convert import convert
from model.checkpoints.published_layouts import Layout, rename
from model.data.transforms import xyxy_to_cxcywh
from model.network.deformable_detr import DeformableDetr
from model.network.inference import decode_detections
from model.training.losses import compute_losses
from tests.data.parity.make_checkpoint import checkpoint as make_checkpoint

PARITY = Path(__file__).parent.parent / "data" / "parity"
FIXTURES = {"base": "base", "refine": "refine", "two_stage": "twostage"}
variants = pytest.mark.parametrize("variant", list(FIXTURES))
# mmdetection takes padding for a part of the image; our model does so in the published training,
# dropout being 0, and never in evaluation.
cases = pytest.mark.parametrize(
    ("case", "training"), [("pad", True), ("nopad", True), ("nopad", False)]
)
layouts = pytest.mark.parametrize("layout", ["mmdet2", "mmdet3"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Checkpoint]:
    """The synthetic weights of every variant, converted from both formats."""
    directory = tmp_path_factory.mktemp("parity")
    converted = {}
    for variant, name in FIXTURES.items():
        for layout in ("mmdet2", "mmdet3"):
            path = directory / f"{layout}_{name}.pth"
            torch.save(make_checkpoint(name, layout), path)
            converted[variant, layout] = convert(path)
    return converted


@pytest.fixture(scope="module")
def expected() -> Mapping[str, Mapping[str, np.ndarray]]:
    """The fixtures by variant."""
    return {v: np.load(PARITY / f"mmdet_tiny_{name}.npz") for v, name in FIXTURES.items()}


def _build(checkpoint: Checkpoint) -> DeformableDetr:
    model = DeformableDetr(replace(checkpoint.config.model, dropout=0.0))
    model.load_state_dict(checkpoint.state_dict)
    return model


def _inputs(arrays: Mapping[str, np.ndarray], case: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(arrays[f"{case}/image"])
    mask = torch.ones(images.shape[0], *images.shape[2:], dtype=torch.bool)
    for b, (height, width) in enumerate(arrays[f"{case}/img_shape"]):
        mask[b, :height, :width] = False
    return images, mask


def _targets(arrays: Mapping[str, np.ndarray], case: str) -> list[dict]:
    targets = []
    for b, (height, width) in enumerate(arrays["pad/img_shape"]):
        corners = torch.from_numpy(arrays[f"{case}/gt{b}_bboxes_xyxy"])
        scale = torch.tensor([width, height, width, height])
        targets.append(
            {
                "labels": torch.from_numpy(arrays[f"{case}/gt{b}_labels"]),
                "boxes": xyxy_to_cxcywh(corners / scale),
                "size": torch.tensor([height, width]),
            }
        )
    return targets


@variants
@layouts
@cases
def test_every_layer_gives_the_same_logits_and_boxes(
    checkpoints: Mapping, expected: Mapping, variant: str, layout: str, case: str, training: bool
) -> None:
    arrays = expected[variant]
    model = _build(checkpoints[variant, layout]).train(training)

    with torch.no_grad():
        outputs = model(*_inputs(arrays, case))

    layers = [*outputs["aux_outputs"], outputs]
    logits = torch.stack([layer["pred_logits"] for layer in layers]).numpy()
    boxes = torch.stack([layer["pred_boxes"] for layer in layers]).numpy()
    np.testing.assert_allclose(logits, arrays[f"{case}/all_cls_logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(boxes, arrays[f"{case}/all_boxes_cxcywh"], rtol=0, atol=1e-5)


@cases
def test_every_proposal_gives_the_same_logits(
    checkpoints: Mapping, expected: Mapping, case: str, training: bool
) -> None:
    arrays = expected["two_stage"]
    model = _build(checkpoints["two_stage", "mmdet2"]).train(training)

    with torch.no_grad():
        encoded = model(*_inputs(arrays, case))["enc_outputs"]

    boxes = torch.from_numpy(arrays[f"{case}/enc_coord_unact"]).sigmoid()
    np.testing.assert_allclose(
        encoded["pred_logits"].numpy(), arrays[f"{case}/enc_cls"], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(encoded["pred_boxes"], boxes, rtol=0, atol=1e-5)


@variants
@cases
def test_detections_in_the_original_image_are_the_same(
    checkpoints: Mapping, expected: Mapping, variant: str, case: str, training: bool
) -> None:
    arrays = expected[variant]
    model = _build(checkpoints[variant, "mmdet2"]).train(training)

    with torch.no_grad():
        outputs = model(*_inputs(arrays, case))
    decoded = decode_detections(outputs["pred_logits"], outputs["pred_boxes"], num_detections=15)

    for b, (original, resized) in enumerate(
        zip(arrays[f"{case}/ori_shape"], arrays[f"{case}/img_shape"], strict=True)
    ):
        output = ImageOutput(*(tensor[b].numpy() for tensor in decoded))
        found = to_detections(output, Geometry(tuple(original), tuple(resized)))
        corners = found.boxes_xywh_px.copy()
        corners[:, 2:] += corners[:, :2]
        prefix = f"{case}/det{b}_orig"
        np.testing.assert_allclose(found.scores, arrays[f"{prefix}/scores"], rtol=0, atol=1e-5)
        assert found.labels.tolist() == arrays[f"{prefix}/labels"].tolist()
        np.testing.assert_allclose(corners, arrays[f"{prefix}/bboxes"], rtol=0, atol=2e-3)


@variants
@pytest.mark.parametrize("case", ["loss_mixed", "loss_oneempty", "loss_allempty"])
def test_losses_and_gradients_are_the_same(
    checkpoints: Mapping, expected: Mapping, variant: str, case: str
) -> None:
    arrays = expected[variant]
    checkpoint = checkpoints[variant, "mmdet3"]
    model = _build(checkpoint).train()

    losses = compute_losses(
        model(*_inputs(arrays, "pad")), _targets(arrays, case), config=checkpoint.config.loss
    )
    total = sum(losses.values(), torch.zeros(()))
    total.backward()

    prefix = f"{case}/value/"
    names = {key.removeprefix(prefix) for key in arrays if key.startswith(prefix)} - {"total"}
    assert set(losses) == names
    for name in names:
        assert losses[name].item() == pytest.approx(arrays[prefix + name].item(), rel=1e-5)
    assert total.item() == pytest.approx(arrays[prefix + "total"].item(), rel=1e-5)
    parameters = dict(model.named_parameters())
    heads = len(model.box_heads)  # index of the encoder's own head
    for theirs, norm in zip(
        arrays[f"{case}/grad_names"], arrays[f"{case}/grad_norms"], strict=True
    ):
        ours = rename(str(theirs), Layout.MMDET3) or ""
        for kind in ("class_head", "box_head"):
            ours = ours.replace(f"{kind}s.{heads}.", f"queries.{kind}.")
        gradient = parameters.pop(ours).grad
        found = 0.0 if gradient is None else gradient.norm().item()
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-6), ours
    assert not any(p.requires_grad for p in parameters.values())
