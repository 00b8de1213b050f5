"""The bundles that bench_engine measures: made once from random weights, kept in a folder."""

import logging
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch

from bundle.manifest import Bundle, Precision
from bundle.staging import staged
from export.precisions import Data, Materials
from export.recipe import export_bundle, write_bundle
from model.checkpoints.convert import convert
from model.config import Variant
from model.data.digits import DigitsDataset

NUM_CALIBRATION_IMAGES = 4
logger = logging.getLogger(__name__)


def bundle_path(folder: Path, variant: str, *, precision: str) -> Path:
    """Directory of the bundle of a variant and precision, whether it exists or not."""
    return folder / f"{variant}-{precision}"


def make_bundles(folder: Path, variant: str, *, precisions: Iterable[Precision]) -> bool:
    """Make the bundles of a variant that the folder does not have yet; takes minutes.

    The fp32 graph is verified as in every export; the AP of the others is not checked. One that
    cannot be made is reported and left out.

    Returns:
        Whether there is the one in fp32, which the others are made from.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    others: list[Precision] = [name for name in precisions if name != "fp32"]
    for precision in ("fp32", *others):
        path = bundle_path(folder, variant, precision=precision)
        if path.exists():
            continue
        try:
            _make_bundle(folder, Variant(variant), precision)
        except (ValueError, RuntimeError, OSError) as error:
            logger.warning("%s cannot be made and is left out: %s", path, error)
            if precision == "fp32":
                return False
    return True


def _make_bundle(folder: Path, variant: Variant, precision: Precision) -> None:
    exact = bundle_path(folder, variant, precision="fp32")
    if precision == "fp32":
        export_bundle(convert(write_huggingface_weights(folder, variant)), exact)
        return
    images = DigitsDataset("train", num_images=NUM_CALIBRATION_IMAGES)
    with staged(bundle_path(folder, variant, precision=precision)) as directory:
        materials = Materials(Bundle.load(exact), Data(train=images))
        write_bundle(materials, directory, precision=precision).save()


def write_huggingface_weights(folder: Path, variant: Variant) -> Path:
    """Write the Hugging Face model's weights like a published file that users convert."""
    from benchmarks.huggingface_peer import build_peer, published_tensors  # if it is installed

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{variant}.huggingface.safetensors"
    safetensors.torch.save_file(published_tensors(build_peer(variant)), path)
    return path
