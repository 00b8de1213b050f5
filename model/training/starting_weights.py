"""Where the weights of a new run come from, before step 1."""

import logging
from collections.abc import Callable
from pathlib import Path

import safetensors.torch

from model.checkpoints.checkpoint_file import first_mismatch, load_for_finetuning
from model.checkpoints.published_urls import WEIGHTS_DIR, checkpoint_name
from model.config import ModelConfig, TrainConfig
from model.network.deformable_detr import DeformableDetr
from model.training.interrupt import StopRequest
from model.training.pretrain import pretrain_backbone

log = logging.getLogger(__name__)
# (backbone_block, backbone_blocks) of the ResNets whose weights are published; all have width 64.
_RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}

# (name of published weights, file to write)
Fetch = Callable[[str, Path], None]


def check_start(config: TrainConfig, init: Path | None, *, fetch: Fetch | None) -> None:
    """Fetch the weights that a run starts from, if they are missing; warn of a doubtful start.

    Raises:
        ValueError: the weights are missing, and `fetch` is None or failed; says how to get them.
    """
    path = starting_file(config, init)
    if init is None and path is not None and not path.is_file():
        if fetch is None:
            raise ValueError(f"{path} is missing; {_how_to_get(path)}")
        log.info("%s is missing: downloading the published weights", path)
        try:
            fetch(path.stem, path)
        except ValueError as error:
            raise ValueError(f"{error}; or {_how_to_get(path)}") from error
    if path is None and config.model.frozen_stages >= 0:
        log.warning(
            "the backbone starts at random, and frozen_stages=%d leaves part of it so; set "
            "frozen_stages=-1 to train all of it",
            config.model.frozen_stages,
        )


def starting_file(config: TrainConfig, init: Path | None) -> Path | None:
    """The file of weights that a run starts from; None if it starts at random."""
    if init is not None or config.backbone_init == "random":
        return init
    is_backbone = config.backbone_init == "imagenet"
    name = backbone_name(config.model) if is_backbone else config.model.variant
    return WEIGHTS_DIR / checkpoint_name(name)


def backbone_name(config: ModelConfig) -> str:
    """The published ResNet that the backbone equals; ValueError if there is none."""
    name = _RESNETS.get((config.backbone_block, config.backbone_blocks))
    if name is None or config.backbone_width != 64:
        known = "; ".join(
            f"{name}: backbone_block={block} backbone_blocks={','.join(map(str, blocks))}"
            for (block, blocks), name in _RESNETS.items()
        )
        raise ValueError(
            f"no ImageNet weights are published for {config.backbone_block} blocks "
            f"{config.backbone_blocks} of width {config.backbone_width}, only for width 64 and "
            f"{known}; or set backbone_init=random"
        )
    return name


def _how_to_get(path: Path) -> str:
    return (
        f"get it with make weights VARIANT={path.stem}, start from another checkpoint with "
        "INIT=CHECKPOINT (--init), or choose CONFIG=small, which starts at random"
    )


def load_starting_weights(
    model: DeformableDetr, config: TrainConfig, *, init: Path | None, stop: StopRequest
) -> None:
    """Load or pre-train weights in place, from `init` or else as the configuration says.

    Raises:
        ValueError: the weights are missing, or belong to another model.
        Interrupted: a stop was requested during pre-training.
    """
    path = starting_file(config, init)
    if path is None:
        if config.pretrain_steps:
            pretrain_backbone(model, config, stop=stop)
    elif init is None and config.backbone_init == "imagenet":
        load_backbone(path, model)
        log.info("%s: backbone loaded", path)
    else:
        for line in load_for_finetuning(path, model):
            log.info(line)


def load_backbone(path: Path, model: DeformableDetr) -> None:
    """Load ImageNet weights into the model's backbone; ValueError if the sizes differ."""
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in safetensors.torch.load_file(path).items()
    }
    if fault := first_mismatch(model.backbone.state_dict(), tensors):
        raise ValueError(
            f"{path} does not fit the model's backbone: {fault}; it is not the file that "
            f"make weights VARIANT={path.stem} writes"
        )
    model.backbone.load_state_dict(tensors)
