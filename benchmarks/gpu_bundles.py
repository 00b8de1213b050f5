"""The weights and bundles that bench_gpu measures, made once and kept in a folder.

Weights are random; with transformers installed, they are those of its model, which then is a peer
with the same weights.
"""

import importlib.util
import logging
import shutil
from pathlib import Path

import torch

from benchmarks.engine_bundles import bundle_path, write_huggingface_weights
from bundle.manifest import Bundle, Precision
from bundle.staging import staged
from export.bundle_writer import preprocess_of, write_exact
from export.graph.half_precision import add_half_graph
from model.checkpoints.checkpoint_file import (
    Checkpoint,
    build_model,
    load_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from model.checkpoints.convert import convert
from model.checkpoints.published_layouts import COCO_CLASSES
from model.config import Variant
from model.configs import get_config
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel

OFFSETS_STD = 2.0 / 16  # offsets spread by two pixels, as in benchmarks.huggingface_peer
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
logger = logging.getLogger(__name__)


def checkpoint_path(folder: Path, variant: str) -> Path:
    """The file with the weights of all contestants."""
    return folder / f"{variant}.safetensors"


def make_model_bundles(folder: Path, variant: str) -> None:
    """Make what the folder lacks of a variant: a checkpoint, and a bundle in every precision.

    They are not verified, which would take longer: the tables say how far they are from PyTorch.
    """
    path = checkpoint_path(folder, variant)
    if not path.exists():
        _write_checkpoint(path, Variant(variant))
    checkpoint = load_checkpoint(path)
    exact = bundle_path(folder, variant, precision="fp32")
    if not exact.exists():
        logger.info("tracing %s, which takes a minute or more", variant)
        _write_exact(checkpoint, exact)
    for precision in PRECISIONS[1:]:
        target = bundle_path(folder, variant, precision=precision)
        if not target.exists():
            with staged(target) as directory:
                shutil.copytree(exact, directory, dirs_exist_ok=True)
                copy = Bundle(directory, Bundle.load(exact).manifest)
                add_half_graph(copy.with_manifest(precision=precision), precision).save()


def _write_exact(checkpoint: Checkpoint, target: Path) -> None:
    model = DetectionModel(build_model(checkpoint), preprocess_of(checkpoint)).eval()
    with staged(target) as directory:
        write_exact(checkpoint, model, directory=directory, name=None, samples={}).save()


def _write_checkpoint(path: Path, variant: Variant) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("transformers"):
        write_checkpoint(convert(write_huggingface_weights(path.parent, variant)), path)
        return
    config = get_config(variant.value)
    torch.manual_seed(0)
    model = DeformableDetr(config.model)
    with torch.no_grad():  # a new model samples on a fixed grid, and weights all samples equally
        for name, weights in model.named_parameters():
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                weights.normal_(std=OFFSETS_STD)
    provenance = {"weights": "random"}
    save_checkpoint(
        path, model, config=config, classes=COCO_CLASSES, provenance=provenance, metrics={}
    )
