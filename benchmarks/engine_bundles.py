"""The bundles that bench_engine measures: made once from random weights, kept in a folder."""

import logging
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch

from benchmarks.huggingface_peer import build_peer, published_tensors
from bundle.manifest import Bundle, Precision
from bundle.staging import staged
from export.precisions import Data, Materials
from export.recipe import export_bundle, write_bundle
from model.checkpoints.convert import convert
from model.config import Variant
from model.data.digits import DigitsDataset

NUM_CALIBRATION_IMAGES = 4


def bundle_path(folder: Path, variant: str, *, precision: str) -> Path:
    """Directory of the bundle of a variant and precision, whether it exists or not."""
    return folder / f"{variant}-{precision}"


def make_bundles(folder: Path, variant: str, *, precisions: Iterable[Precision]) -> None:
    """Make the bundles of a variant that the folder does not have yet; takes minutes.

    The fp32 graph is verified as in every export; the AP of the others is not checked.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    exact = bundle_path(folder, variant, precision="fp32")
    if not exact.exists():
        export_bundle(convert(_write_weights(folder, Variant(variant))), exact)
    for precision in precisions:
        path = bundle_path(folder, variant, precision=precision)
        if not path.exists():
            images = DigitsDataset("train", num_images=NUM_CALIBRATION_IMAGES)
            with staged(path) as directory:
                materials = Materials(Bundle.load(exact), Data(train=images))
                write_bundle(materials, directory, precision=precision).save()


def _write_weights(folder: Path, variant: Variant) -> Path:
    """Write the Hugging Face model's weights like a published file that users convert."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{variant}.huggingface.safetensors"
    safetensors.torch.save_file(published_tensors(build_peer(variant)), path)
    return path
