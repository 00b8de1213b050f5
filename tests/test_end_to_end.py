"""The demo bundle has the AP that its manifest says, evaluated and over HTTP."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.manifest import Manifest
from detr_client import DetrClient, coco_results
from model.data.digits import DigitsDataset, write_coco
from model.evaluation.coco_metrics import score

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "bundles" / "demo"


def _run(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _detect_all(address: str, directory: Path, ground_truth: dict[str, Any]) -> list[dict]:
    """COCO results of every image of a data set, asked for over HTTP."""
    images = ground_truth["images"]
    with DetrClient(address) as client:
        results = client.detect_many(
            [directory / image["file_name"] for image in images],
            threshold=0,
            image_ids=[image["id"] for image in images],
        )
    return coco_results(results)


@pytest.mark.slow
def test_the_demo_bundle_has_the_ap_that_its_manifest_says(tmp_path: Path) -> None:
    _run("export.evaluate", "--bundle", DEMO, "--out", tmp_path / "results.json")

    results = json.loads((tmp_path / "results.json").read_text())
    measured = score(DigitsDataset("val").ground_truth(), results)
    manifest = Manifest.load(DEMO)
    # The manifest has the AP of the checkpoint, measured in PyTorch.
    assert measured.numbers["AP"] == pytest.approx(manifest.metrics["AP"], abs=1e-3)
    assert measured.numbers["AP"] >= 0.60
    assert measured.thresholds is not None
    assert manifest.thresholds is not None
    f1 = measured.thresholds.overall.f1
    assert f1 == pytest.approx(manifest.thresholds.overall.f1, abs=2e-3)


@pytest.mark.slow
def test_results_collected_over_http_have_that_ap_too(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = DigitsDataset("val")
    write_coco(dataset, tmp_path)
    service = start(bundle=DEMO)
    address = service.read_address()
    service.wait_until_ready(address)

    results = _detect_all(address, tmp_path / "images" / "val", dataset.ground_truth())

    measured = score(dataset.ground_truth(), results).numbers["AP"]
    assert measured == pytest.approx(Manifest.load(DEMO).metrics["AP"], abs=1e-3)
