"""Small models with random weights, exported once each for all tests of this folder."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock

from bundle.manifest import Bundle, ClassInfo, Manifest
from bundle.thresholds import OperatingPoint, Thresholds
from export.recipe import export_bundle
from model.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from model.config import TrainConfig, Variant
from model.configs import tiny
from model.data import digits
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel

# Between them: both kinds of blocks in the backbone; one class, so that fewer detections are
# possible than asked for; many classes; the demo's classes, with more queries than the coarsest
# levels have tokens.
MODELS: dict[Variant, dict[str, Any]] = {
    Variant.BASE: {"num_classes": 1, "num_queries": 10, "backbone_block": "basic"},
    Variant.REFINE: {"num_classes": 1000},
    Variant.TWO_STAGE: {"num_classes": 10, "num_queries": 30},
}


class Exported(NamedTuple):
    """A checkpoint, the bundle made of it, and the model of both."""

    checkpoint: Path
    directory: Path
    manifest: Manifest
    model: DetectionModel


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of an exported model are slow: the first of each variant exports it."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[Variant], Exported]:
    """A function from a variant to its exported model; change copies of its files only.

    A trace takes a minute, so processes that run tests side by side share the files.
    """
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent

    @cache
    def export(variant: Variant) -> Exported:
        directory = folder / f"exported-{variant.value}"
        checkpoint = directory / "model.safetensors"
        with FileLock(f"{directory}.lock"):
            if not (directory / "bundle").exists():
                directory.mkdir(exist_ok=True)
                write_checkpoint(variant, checkpoint)
                export_bundle(load_checkpoint(checkpoint), directory / "bundle", name="small")
        loaded = load_checkpoint(checkpoint)
        manifest = Bundle.load(directory / "bundle").manifest
        detector = DeformableDetr(loaded.config.model)
        detector.load_state_dict(loaded.state_dict)
        model = DetectionModel(detector, manifest.preprocess).eval()
        return Exported(checkpoint, directory / "bundle", manifest, model)

    return export


@pytest.fixture
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    """A function from a variant to a checkpoint of its small model."""

    def write(variant: Variant) -> Path:
        path = tmp_path_factory.mktemp(variant.value) / "model.safetensors"
        write_checkpoint(variant, path)
        return path

    return write


def write_checkpoint(variant: Variant, path: Path) -> None:
    """A checkpoint whose heads and samplings are random, so that every image gives other boxes."""
    config = _config(variant)
    torch.manual_seed(5)
    detector = DeformableDetr(config.model)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "head" in name or "attn" in name or "reference_points" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    names = [f"class {label}" for label in range(config.model.num_classes)]
    classes = [ClassInfo(id=label + 1, name=name) for label, name in enumerate(names)]
    if config.model.num_classes == len(digits.CLASSES):
        classes = list(digits.CLASSES)
    metrics = {"AP": 0.25}
    save_checkpoint(
        path,
        detector,
        config=config,
        classes=classes,
        provenance={"seed": 5},
        metrics=metrics,
        thresholds=Thresholds(overall=OperatingPoint(threshold=0.4, precision=0.5, recall=0.5)),
    )


def _config(variant: Variant) -> TrainConfig:
    config = tiny()
    model = replace(config.model, variant=variant, **MODELS[variant])
    return replace(config, model=model)
