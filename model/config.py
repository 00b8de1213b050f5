"""Every setting of model, loss and training, as frozen dataclasses that validate themselves."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from bundle.preprocess import Preprocess

MOST_THREADS = 1024  # or processes


class Variant(StrEnum):
    """The three published forms of Deformable DETR."""

    BASE = "base"  # learned reference points, one shared head
    REFINE = "refine"  # every decoder layer corrects the previous boxes
    TWO_STAGE = "two_stage"  # refine, with queries taken from encoder proposals


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= least, f"{name} must be at least {least}, got {value}")


def _require_share(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value <= 1, f"{name} must be between 0 and 1, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the detector. The defaults are the published base variant."""

    variant: Variant = Variant.BASE
    num_classes: int = 80
    hidden_dim: int = 256
    num_heads: int = 8
    num_levels: int = 4
    num_points: int = 4
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    ffn_dim: int = 1024
    dropout: float = 0.1
    num_queries: int = 300
    num_detections: int = 100  # top-k of the post-processing
    backbone_width: int = 64  # channels of the stem; ResNet-50 has 64
    backbone_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    backbone_block: Literal["bottleneck", "basic"] = "bottleneck"  # "basic": ResNet-18 and 34
    frozen_stages: int = 1  # -1 nothing, 0 the stem, n the stem and the first n stages
    train_batch_norm: bool = False  # False: fixed statistics and no gradient, as published
    # How padding is treated in training. "exact": as in inference, it is not part of the image;
    # neither statistics nor neighbouring cells see it. "published": it is part of the image, as
    # zeros, as when the published weights were trained.
    train_padding: Literal["exact", "published"] = "published"
    # Compute intermediate results again in the backward pass, to save memory.
    gradient_checkpointing: bool = False
    input_proj_bias: bool = False  # True for weights from the authors and Hugging Face
    # Content of two-stage queries: from the proposal's position (paper), the encoder's memory, or
    # learned, the same for every image (mixed query selection, arXiv:2203.03605).
    query_content: Literal["position", "memory", "learned"] = "position"
    # Extra queries in training: more of the best proposals, several of which are matched to each
    # object (hybrid matching, arXiv:2207.13080), and noisy objects (arXiv:2203.03605).
    one_to_many_queries: int = 0
    denoising_queries: int = 0
    # A box also corrects the layer before its own (arXiv:2203.03605). Changes gradients only.
    look_forward_twice: bool = False

    def __post_init__(self) -> None:
        _require_at_least(
            self, 1, "num_classes", "num_heads", "num_points", "num_decoder_layers", "num_queries",
            "ffn_dim", "num_detections", "backbone_width",
        )  # fmt: skip
        _require_at_least(self, 0, "num_encoder_layers", "one_to_many_queries", "denoising_queries")
        _require(
            self.hidden_dim % self.num_heads == 0,
            f"hidden_dim {self.hidden_dim} must be a multiple of num_heads {self.num_heads}",
        )
        _require(
            self.hidden_dim % 32 == 0 and self.hidden_dim >= 64,
            f"hidden_dim {self.hidden_dim} must be a multiple of 32 from 64 on (32 norm groups)",
        )
        _require_at_least(self, 3, "num_levels")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        _require(
            len(self.backbone_blocks) == 4 and min(self.backbone_blocks) >= 1,
            f"backbone_blocks must be four positive counts, got {self.backbone_blocks}",
        )
        _require(
            -1 <= self.frozen_stages <= 4,
            f"frozen_stages must be in -1..4, got {self.frozen_stages}",
        )
        _require(
            self.query_content == "position" or self.variant is Variant.TWO_STAGE,
            f"query_content={self.query_content!r} needs the two_stage variant",
        )
        for name in ("one_to_many_queries", "denoising_queries"):
            _require(
                getattr(self, name) == 0 or self.variant is Variant.TWO_STAGE,
                f"{name} needs the two_stage variant",
            )
        _require(
            not self.look_forward_twice or self.variant is not Variant.BASE,
            "look_forward_twice needs the refine or two_stage variant, whose layers correct boxes",
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms, the same in matching cost and loss, and the forms of the terms."""

    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    # "varifocal" makes the target of a matched class its IoU, so that scores rank boxes.
    classification: Literal["focal", "varifocal"] = "focal"
    # A weight for each class, in the order of the data set, in the classification of matched
    # predictions; a rare class may get more than 1. Empty: 1 for all.
    class_weights: tuple[float, ...] = ()
    encoder_matches: int = 1  # proposals matched to every ground truth on the encoder head
    one_to_many_matches: int = 6  # of `one_to_many_queries` to every ground truth
    one_to_many_weight: float = 1.0  # of their loss
    denoising_label_noise: float = 0.25  # share of labels that are replaced by any class
    denoising_box_noise: float = 1.0  # 1: near corners move by up to half a side, far ones by more

    def __post_init__(self) -> None:
        _require_at_least(self, 0, "class_weight", "box_weight", "giou_weight", "focal_gamma")
        _require(
            self.class_weight + self.box_weight + self.giou_weight > 0,
            "class_weight, box_weight and giou_weight are all 0, so nothing would be learned",
        )
        _require_at_least(self, 0, "one_to_many_weight", "denoising_box_noise")
        _require_at_least(self, 1, "encoder_matches", "one_to_many_matches")
        _require_share(self, "focal_alpha", "denoising_label_noise")
        _require(
            all(weight > 0 for weight in self.class_weights),
            f"class_weights must be positive, got {self.class_weights}",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation; the defaults are the published recipe. Sizes in pixels."""

    flip_probability: float = 0.5
    # Top and bottom change places; for images without an up and a down, as of a microscope.
    vertical_flip_probability: float = 0.0
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop_probability: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)  # sizes before the crop
    crop_long_side: int = 4200
    crop_min: int = 384
    crop_max: int = 600
    # The resized image is scaled again by a factor between these, and cropped to its former size.
    scale_jitter: tuple[float, float] | None = None
    # 1: hue by up to 18 degrees; saturation, brightness and contrast by up to half.
    colour_jitter: float = 0.0
    mosaic_probability: float = 0.0  # of an image made of four
    paste_probability: float = 0.0  # of objects copied from another image
    paste_objects: int = 3  # at most
    # A JPEG is decoded at a half, a quarter or an eighth of its size where the sizes above need no
    # more. That smooths it, unlike the resizing of detection.
    scaled_decoding: bool = False

    def __post_init__(self) -> None:
        for name in ("short_sides", "crop_short_sides"):
            sizes = getattr(self, name)
            _require(
                bool(sizes) and min(sizes) >= 1,
                f"{name} must name at least one size, in pixels, got {sizes}",
            )
        _require_at_least(self, 1, "long_side", "crop_long_side")
        _require_at_least(self, 1, "paste_objects")
        _require_share(
            self, "flip_probability", "vertical_flip_probability", "crop_probability",
            "colour_jitter", "mosaic_probability", "paste_probability",
        )  # fmt: skip
        _require(
            not (self.scaled_decoding and self.paste_probability),
            "scaled_decoding needs paste_probability=0: pasted objects would change their size",
        )
        low, high = self.scale_jitter or (1.0, 1.0)
        _require(
            0 < low <= high, f"scale_jitter must be two factors, the lower first, got {low}, {high}"
        )
        _require(
            1 <= self.crop_min <= self.crop_max,
            f"crop_min {self.crop_min} must be in 1..crop_max {self.crop_max}",
        )


@dataclass(frozen=True)
class TrainConfig:
    """One complete run: model, loss, data, optimisation. The defaults are the published recipe."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    preprocess: Preprocess = field(default_factory=Preprocess)
    # "coco": annotations and images in --data; "digits": the demo data set, made on the fly.
    dataset: Literal["coco", "digits"] = "coco"
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    # "checkpoint": the published detector of the variant, or the one given with --init.
    backbone_init: Literal["random", "imagenet", "checkpoint"] = "imagenet"
    # Parts of the model that are not trained, by the beginnings of their parameters' names.
    freeze: tuple[str, ...] = ()
    pretrain_steps: int = 0  # steps of backbone pre-training on crops (digits only)
    epochs: int = 50
    # The run and its schedule end after this many minutes, whatever `epochs` says: epoch n of the
    # schedule is then n / epochs of the time.
    minutes: float | None = None
    # best.safetensors is the epoch with the best value: one of COCO's numbers on the validation
    # images, or "loss", their loss.
    best_metric: Literal[
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
        "loss",
    ] = "AP"
    evaluate_every: int = 1  # epochs; the first one and the last one are evaluated in any case
    patience: int | None = None  # epochs without a better one, after which the run ends early
    keep_last: int = 0  # checkpoints of so many last epochs are kept, each in a file of its own
    epoch_images: int | None = None  # images per epoch of an endless data set
    batch_size: int = 2  # images per forward pass
    # batch_size=auto: as many images as fit in memory, with accumulation_steps for as many a step.
    fit_batch: bool = False
    accumulation_steps: int = 16  # forward passes per optimiser step
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    backbone_lr_factor: float = 0.1
    offsets_lr_factor: float = 0.1  # sampling_offsets and reference_points
    schedule: Literal["step", "cosine"] = "step"
    lr_drop_epochs: tuple[int, ...] = (40,)  # "step": x 0.1 after each
    warmup_steps: int = 0
    clip_norm: float = 0.1
    ema_decay: float | None = None
    # Of the forward pass; sampling locations, matching and losses stay in float32.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False  # products of float32 may lose 13 bits of mantissa on a GPU
    compile_backbone: bool = False  # by torch.compile
    # Also gets the values of all curves; its own environment variables configure it.
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    num_workers: int = 2
    num_threads: int | None = None  # of torch on a CPU; None leaves the choice to torch
    seed: int = 42

    def __post_init__(self) -> None:
        _require_at_least(
            self, 1, "epochs", "epoch_images", "batch_size", "accumulation_steps", "num_threads",
            "patience", "evaluate_every",
        )  # fmt: skip
        _require_at_least(
            self, 0, "pretrain_steps", "weight_decay", "backbone_lr_factor", "offsets_lr_factor",
            "warmup_steps", "num_workers", "seed", "keep_last",
        )  # fmt: skip
        for name in ("num_threads", "num_workers"):  # a machine breaks down under more
            value = getattr(self, name) or 0
            _require(value <= MOST_THREADS, f"{name} must be at most {MOST_THREADS}, got {value}")
        _require(
            all(epoch >= 1 for epoch in self.lr_drop_epochs),
            f"lr_drop_epochs must be at least 1, got {', '.join(map(str, self.lr_drop_epochs))}",
        )
        _require(self.seed < 2**32, f"seed must be below 2^32, got {self.seed}")
        for name in ("learning_rate", "clip_norm", "minutes"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be positive, got {value}")
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay must be between 0 and 1, got {self.ema_decay}",
        )
        _require(
            self.pretrain_steps == 0 or self.dataset == "digits",
            "pretrain_steps needs dataset='digits', which provides the crops",
        )
        _require(
            self.epoch_images is None or self.dataset == "digits",
            "epoch_images needs dataset='digits', which can make any number of images",
        )
