"""Downloads published weights and turns them into files of this project.

python -m model.weights base|refine|two_stage [--format mmdet2|mmdet3] [--out weights]
python -m model.weights resnet50     the ImageNet backbone that training starts from
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from model.checkpoints.checkpoint_file import load_checkpoint, write_checkpoint, write_tensors
from model.checkpoints.convert import convert, sha256
from model.checkpoints.download import Sleep, digest_prefix, download
from model.checkpoints.published_file import read_content
from model.training.starting_weights import BACKBONE, WEIGHTS_DIR

# The eight hex digits in a name are the first of the file's SHA-256.
_MMDET_FILES = {
    ("mmdet2", "base"): "deformable_detr_r50_16x2_50e_coco_20210419_220030-a12b9512.pth",
    ("mmdet2", "refine"): "deformable_detr_refine_r50_16x2_50e_coco_20210419_220503-5f5dff21.pth",
    ("mmdet2", "two_stage"): (
        "deformable_detr_twostage_refine_r50_16x2_50e_coco_20210419_220613-9d28ab72.pth"
    ),
    ("mmdet3", "base"): "deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth",
    ("mmdet3", "refine"): "deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth",
    ("mmdet3", "two_stage"): (
        "deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth"
    ),
}
_MMDET_URL = "https://download.openmmlab.com/mmdetection"
_RELEASES = {"mmdet2": "v2.0", "mmdet3": "v3.0"}
_BACKBONE_URL = "https://download.pytorch.org/models"
_BACKBONE_FILE = "resnet50-0676ba61.pth"  # torchvision, IMAGENET1K_V1; V2 gives other results
VARIANTS = ("base", "refine", "two_stage")


def published_url(variant: str, *, file_format: str = "mmdet2", base_url: str | None = None) -> str:
    """Where the weights of a variant, or of "resnet50", are published (or mirrored: base_url)."""
    if variant == BACKBONE:
        return f"{base_url or _BACKBONE_URL}/{_BACKBONE_FILE}"
    name = _MMDET_FILES[file_format, variant]
    directory = f"{_RELEASES[file_format]}/deformable_detr/{name.rsplit('_', 2)[0]}"
    return f"{base_url or _MMDET_URL}/{directory}/{name}"


def fetch_detector(url: str, checkpoint: Path, *, sleep: Sleep = time.sleep) -> None:
    """Downloads a published file to the checkpoint's directory and converts it.

    Does nothing if the checkpoint made of that file is there already.
    """
    source = checkpoint.with_name(url.rsplit("/", 1)[1])
    if checkpoint.is_file():
        digest = load_checkpoint(checkpoint).provenance.get("sha256", "")
        if digest.startswith(digest_prefix(source.name)):
            return
    download(url, source, sleep=sleep)
    write_checkpoint(convert(source), checkpoint)


def fetch_backbone(url: str, path: Path, *, sleep: Sleep = time.sleep) -> None:
    """Downloads torchvision's ResNet-50 and writes its tensors as `backbone.*` to `path`."""
    source = path.with_name(url.rsplit("/", 1)[1])
    download(url, source, sleep=sleep)
    tensors = {
        f"backbone.{name}": tensor
        for name, tensor in read_content(source).items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    metadata = {"source": source.name, "sha256": sha256(source)}
    write_tensors(path, tensors, metadata=metadata)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a fault ends in one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m model.weights", description=__doc__)
    parser.add_argument("variant", choices=(*VARIANTS, BACKBONE))
    parser.add_argument("--format", choices=tuple(_RELEASES), default="mmdet2",
                        help="whose published files, of 2021 or 2022")  # fmt: skip
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--base-url", help="a mirror of the place the files are published at")
    args = parser.parse_args(arguments)
    url = published_url(args.variant, file_format=args.format, base_url=args.base_url)
    suffix = "_mmdet3" if args.format == "mmdet3" and args.variant != BACKBONE else ""
    path = args.out / f"{args.variant}{suffix}.safetensors"
    try:
        (fetch_backbone if args.variant == BACKBONE else fetch_detector)(url, path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(path)


if __name__ == "__main__":
    main()
