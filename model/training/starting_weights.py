"""Where the weights of a new run come from, before step 1."""

import logging
from pathlib import Path

import safetensors.torch

from model.checkpoints.checkpoint_file import first_mismatch, load_for_finetuning
from model.checkpoints.published_urls import BACKBONE, WEIGHTS_DIR
from model.config import TrainConfig
from model.network.deformable_detr import DeformableDetr
from model.training.interrupt import StopRequest
from model.training.pretrain import pretrain_backbone

log = logging.getLogger(__name__)


def check_start(config: TrainConfig, init: Path | None) -> None:
    """Raise ValueError for a start from which training cannot succeed."""
    if init is None and config.backbone_init == "checkpoint":
        raise ValueError(
            f"config {config.name} starts from trained weights: add INIT=CHECKPOINT (--init) "
            "(make weights VARIANT=two_stage makes one)"
        )
    if init is None and config.backbone_init == "imagenet":
        backbone_weights(WEIGHTS_DIR)
    if init is None and config.backbone_init == "random" and config.model.frozen_stages >= 0:
        log.warning(
            "the backbone starts at random, and %d of its stages stay frozen (frozen_stages); "
            "set frozen_stages=-1 to train them",
            config.model.frozen_stages + 1,
        )


def load_starting_weights(
    model: DeformableDetr, config: TrainConfig, *, init: Path | None, stop: StopRequest
) -> None:
    """Load or pre-train weights in place, from `init` or else as the configuration says.

    Raises:
        ValueError: the weights are missing, or belong to another model.
        Interrupted: a stop was requested during pre-training.
    """
    if init is not None:
        for line in load_for_finetuning(init, model):
            log.info(line)
    elif config.backbone_init == "imagenet":
        path = backbone_weights(WEIGHTS_DIR)
        load_backbone(path, model)
        log.info("%s: backbone loaded", path)
    elif config.pretrain_steps:
        pretrain_backbone(model, config, stop=stop)


def backbone_weights(directory: Path) -> Path:
    """The file of ImageNet weights in `directory`; ValueError says how to get it."""
    path = directory / f"{BACKBONE}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: training starts from ImageNet weights; get them by "
            "make weights VARIANT=resnet50, or start from a checkpoint by INIT= (--init)"
        )
    return path


def load_backbone(path: Path, model: DeformableDetr) -> None:
    """Load ImageNet weights into the model's backbone; ValueError if the sizes differ."""
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in safetensors.torch.load_file(path).items()
    }
    if fault := first_mismatch(model.backbone.state_dict(), tensors):
        raise ValueError(
            f"{path} does not fit the model's backbone: {fault}; "
            "only ResNet-50 (width 64, blocks 3, 4, 6, 3) can start from it"
        )
    model.backbone.load_state_dict(tensors)
