"""The page about fine-tuning, from a folder of Roboflow to an answer of the service, followed."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.manifest import Manifest
from tests.data.parity.make_checkpoint import checkpoint

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "finetune.md").read_text()
FIXTURE = ROOT / "tests" / "data" / "coco_fixture12"
PHOTO = "000000000294.jpg"

# Of the checkpoint that is converted, and as short a run as there is.
SMALL = """
epochs = 1
warmup_steps = 0
lr_drop_epochs = []
accumulation_steps = 1
num_workers = 0

[model]
num_encoder_layers = 2
num_decoder_layers = 3
ffn_dim = 64
backbone_width = 8
num_queries = 20
num_detections = 20

[preprocess]
short_side = 96
long_side = 160

[augment]
short_sides = [64, 96]
long_side = 160
crop_short_sides = [80, 100]
crop_long_side = 200
crop_min = 48
crop_max = 80
"""


def blocks(language: str) -> list[str]:
    """The code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def write_roboflow(directory: Path) -> None:
    """The twelve images, four of them in valid, as Roboflow exports COCO: a class 0 above all."""
    everything = json.loads((FIXTURE / "instances.json").read_text())
    above = {"id": 0, "name": "things", "supercategory": "none"}
    classes = [one | {"supercategory": "things"} for one in everything["categories"]]
    for split, images in (("train", everything["images"][4:]), ("valid", everything["images"][:4])):
        (directory / split).mkdir(parents=True)
        ids = {image["id"] for image in images}
        content = {
            "info": {"description": "Exported from roboflow.com"},
            "images": images,
            "annotations": [a for a in everything["annotations"] if a["image_id"] in ids],
            "categories": [above, *classes],
        }
        (directory / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in images:
            shutil.copy(FIXTURE / "images" / image["file_name"], directory / split)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the reader's files: data, weights, settings and a photo."""
    project = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", "weights"):
            (project / path.name).symlink_to(path)
    write_roboflow(project / "data" / "mine")
    (project / "weights").mkdir()
    torch.save(checkpoint("twostage", "mmdet3"), project / "weights" / "mine.pth")
    (settings,) = blocks("toml")
    unchanged = [line for line in settings.splitlines() if not line.startswith("epochs")]
    (project / "mine.toml").write_text("\n".join(unchanged) + SMALL)
    shutil.copy(FIXTURE / "images" / PHOTO, project / "photo.jpg")
    return project


def run(command: str, project: Path) -> str:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=project, capture_output=True, text=True, env=mine
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(printed: str) -> list[str]:
    """The lines that hold the twelve COCO numbers."""
    lines = [line for line in printed.splitlines() if re.match(r"A[PR]\w*  ", line)]
    assert len(lines) == 12, printed
    return lines


@pytest.mark.slow
def test_the_page_leads_to_detections_of_the_readers_classes(
    project: Path, start: Callable[..., Any]
) -> None:
    *preparation, serve, ask = blocks("sh")

    *_, of_checkpoint, _, of_bundle = [run(command, project) for command in preparation]
    _, _, bundle, _ = shlex.split(serve)
    service = start(bundle=project / bundle.removeprefix("BUNDLE="))
    address = service.read_address()
    service.wait_until_ready(address)
    answer = json.loads(
        run(ask.replace("http://localhost:8000/detect", f"'{address}/detect?threshold=0'"), project)
    )

    manifest = Manifest.load(project / "runs" / "mine" / "bundle")
    names = {one.name for one in manifest.classes}
    (result,) = answer["results"]
    assert numbers(of_bundle) == numbers(of_checkpoint)
    assert len(result["detections"]) == manifest.num_detections
    assert {found["category_name"] for found in result["detections"]} <= names
    assert "things" not in names
    for found in result["detections"]:
        x, y, width, height = found["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= result["width"] + 1e-3
        assert y + height <= result["height"] + 1e-3
