"""The bundles that bench_engine measures: made once from random weights, kept in a folder."""

import logging
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch

from benchmarks.huggingface_peer import build_peer, published_tensors
from export.build import build_bundle
from model.checkpoint import Checkpoint
from model.config import Variant
from model.convert import convert


def bundle_path(folder: Path, variant: str, precision: str) -> Path:
    """Where the bundle of a variant and a precision lies, or is to lie."""
    return folder / f"{variant}-{precision}"


def make_bundles(folder: Path, variant: str, precisions: Iterable[str]) -> None:
    """Make those bundles of a variant that the folder does not hold yet; takes minutes."""
    missing = [p for p in precisions if not bundle_path(folder, variant, p).exists()]
    if not missing:
        return
    logging.getLogger("export").setLevel(logging.INFO)
    checkpoint = _checkpoint(folder, Variant(variant))
    for precision in missing:
        build_bundle(checkpoint, bundle_path(folder, variant, precision))


def _checkpoint(folder: Path, variant: Variant) -> Checkpoint:
    """The weights of the Hugging Face model, through the converter that users have."""
    folder.mkdir(parents=True, exist_ok=True)
    published = folder / f"{variant}.huggingface.safetensors"
    safetensors.torch.save_file(published_tensors(build_peer(variant)), published)
    return convert(published)
