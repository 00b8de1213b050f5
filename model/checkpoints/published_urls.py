"""Where weights are published; each file's name contains its digest."""

import re
from pathlib import Path

VARIANTS = ("base", "refine", "two_stage")
RELEASES = {"mmdet2": "v2.0", "mmdet3": "v3.0"}  # from 2021 and 2022
WEIGHTS_DIR = Path("weights")  # where downloads go

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
_BACKBONE_URL = "https://download.pytorch.org/models"
# torchvision's IMAGENET1K_V1; V2 gives other results.
BACKBONES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}


def published_url(variant: str, *, file_format: str = "mmdet2", base_url: str | None = None) -> str:
    """The URL of the weights of a variant or a backbone, at their publisher or at `base_url`."""
    if variant in BACKBONES:
        return f"{base_url or _BACKBONE_URL}/{BACKBONES[variant]}"
    name = _MMDET_FILES[file_format, variant]
    directory = f"{RELEASES[file_format]}/deformable_detr/{name.rsplit('_', 2)[0]}"
    return f"{base_url or _MMDET_URL}/{directory}/{name}"


def checkpoint_name(variant: str, *, file_format: str = "mmdet2") -> str:
    """The file name of the converted weights of a variant or a backbone."""
    is_later = file_format == "mmdet3" and variant not in BACKBONES
    return f"{variant}{'_mmdet3' if is_later else ''}.safetensors"


def digest_prefix(name: str) -> str:
    """The hex digits of the SHA-256 in a published file's name; ValueError without them."""
    match = re.search(r"-([0-9a-f]{8})\.pth$", name)
    if match is None:
        raise ValueError(f"{name} does not end in eight hex digits of its SHA-256")
    return match[1]
