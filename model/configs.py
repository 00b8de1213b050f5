"""Complete training configurations by name. A new run is a new function."""

from collections.abc import Callable
from dataclasses import replace

from bundle.preprocess import Preprocess
from model.config import AugmentConfig, LossConfig, ModelConfig, TrainConfig, Variant


def base() -> TrainConfig:
    """The published 50-epoch recipe, learned reference points (44.5 AP on COCO)."""
    return TrainConfig(name="base")


def refine() -> TrainConfig:
    """The published recipe with iterative bounding box refinement (46.1 AP)."""
    return replace(base(), name="refine", model=ModelConfig(variant=Variant.REFINE))


def two_stage() -> TrainConfig:
    """The published recipe, two-stage with refinement (46.8 AP)."""
    return replace(base(), name="two_stage", model=ModelConfig(variant=Variant.TWO_STAGE))


def finetune() -> TrainConfig:
    """Fine-tuning of published two-stage weights, or of --init, on a small data set."""
    return replace(
        base(),
        name="finetune",
        model=ModelConfig(variant=Variant.TWO_STAGE, train_padding="exact"),
        epochs=12,
        accumulation_steps=4,
        learning_rate=5e-5,
        lr_drop_epochs=(10,),
        warmup_steps=200,
        backbone_init="checkpoint",
    )


def demo() -> TrainConfig:
    """Handwritten digits over photographs, from scratch in minutes on two CPU cores."""
    return replace(
        base(),
        name="demo",
        model=ModelConfig(
            variant=Variant.TWO_STAGE,
            num_classes=10,
            hidden_dim=64,
            num_heads=4,
            num_levels=3,
            num_points=2,
            num_encoder_layers=1,
            num_decoder_layers=3,
            ffn_dim=256,
            dropout=0.0,
            num_queries=30,
            backbone_width=16,
            backbone_blocks=(1, 1, 1, 1),
            frozen_stages=-1,
            train_batch_norm=True,
            train_padding="exact",
            query_content="memory",
            denoising_queries=30,
        ),
        loss=LossConfig(classification="varifocal"),
        preprocess=Preprocess(short_side=128, long_side=224),
        dataset="digits",
        augment=None,
        backbone_init="random",
        pretrain_steps=1500,
        epochs=12,
        evaluate_every=3,
        epoch_images=3200,
        batch_size=8,
        accumulation_steps=1,
        learning_rate=2e-3,
        backbone_lr_factor=0.3,
        schedule="cosine",
        warmup_steps=50,
        clip_norm=1.0,
        ema_decay=0.99,
        num_workers=1,
        # Tensors this small gain nothing from a second thread (60 images/s with one on a 2-core
        # AMD EPYC), and lose most of their speed with two when the cores have other work.
        num_threads=1,
    )


def small() -> TrainConfig:
    """A small model from scratch, for a few hundred images and no GPU."""
    return replace(
        base(),
        name="small",
        model=ModelConfig(
            variant=Variant.TWO_STAGE,
            hidden_dim=64,
            num_heads=4,
            num_levels=3,
            num_points=2,
            num_encoder_layers=1,
            num_decoder_layers=3,
            ffn_dim=256,
            dropout=0.0,
            num_queries=60,
            backbone_width=16,
            backbone_blocks=(1, 1, 1, 1),
            frozen_stages=-1,
            train_batch_norm=True,
            train_padding="exact",
            query_content="memory",
        ),
        loss=LossConfig(classification="varifocal", encoder_matches=4),
        preprocess=Preprocess(short_side=240, long_side=400),
        augment=AugmentConfig(
            short_sides=(208, 224, 240, 256, 272),
            long_side=400,
            crop_short_sides=(240, 280, 320),
            crop_long_side=640,
            crop_min=160,
            crop_max=240,
        ),
        backbone_init="random",
        epochs=50,
        batch_size=8,
        accumulation_steps=1,
        learning_rate=2e-3,
        backbone_lr_factor=1.0,
        schedule="cosine",
        warmup_steps=100,
        clip_norm=1.0,
        ema_decay=0.99,
    )


def bccd() -> TrainConfig:
    """Blood cells in microscope images (BCCD: 205 images, 3 classes), from scratch on a CPU."""
    return replace(
        small(),
        name="bccd",
        model=replace(small().model, denoising_queries=60),
        # Cells have no up and no down. Scaled images are never larger than those of inference, so
        # batches need little padding, which costs as much as images do.
        augment=AugmentConfig(
            vertical_flip_probability=0.5,
            short_sides=(240,),
            long_side=400,
            crop_probability=0.0,
            scale_jitter=(0.8, 1.3),
        ),
        epochs=100,
        batch_size=4,
        learning_rate=1.5e-3,
        warmup_steps=200,
        ema_decay=0.995,
        num_workers=1,
        num_threads=1,  # as in `demo`
    )


def tiny() -> TrainConfig:
    """The smallest complete model, for tests and a first look at the code."""
    return replace(
        base(),
        name="tiny",
        model=ModelConfig(
            num_classes=3,
            hidden_dim=64,
            num_heads=2,
            num_points=2,
            num_encoder_layers=1,
            num_decoder_layers=2,
            ffn_dim=64,
            num_queries=10,
            num_detections=15,
            backbone_width=4,
            backbone_blocks=(1, 1, 1, 1),
            train_padding="exact",
        ),
        preprocess=Preprocess(short_side=96, long_side=160),
        augment=AugmentConfig(
            short_sides=(64, 80, 96),
            long_side=160,
            crop_short_sides=(80, 100),
            crop_long_side=200,
            crop_min=48,
            crop_max=80,
        ),
        backbone_init="random",
        epochs=2,
        accumulation_steps=1,
        num_workers=0,
    )


CONFIGS: dict[str, Callable[[], TrainConfig]] = {
    "base": base,
    "refine": refine,
    "two_stage": two_stage,
    "finetune": finetune,
    "demo": demo,
    "small": small,
    "bccd": bccd,
    "tiny": tiny,
}


def get_config(name: str) -> TrainConfig:
    """The configuration of that name; ValueError lists the known names."""
    if name not in CONFIGS:
        raise ValueError(f"unknown config {name!r}; known are: {', '.join(CONFIGS)}")
    return CONFIGS[name]()
