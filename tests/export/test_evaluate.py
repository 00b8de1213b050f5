import json
import shutil

import numpy as np
import pytest
from PIL import Image

import model.evaluate
from bundle.manifest import Bundle
from export.evaluate import main
from model.config import Variant
from model.data.digits import DigitsDataset, write_coco
from tests.engines.gpu.nvimagecodec import needs_nvimagecodec
from tests.model.html_page import read_page

pytestmark = pytest.mark.slow

LIMIT = 6


def test_a_bundle_gives_the_detections_of_its_checkpoint(exported, tmp_path, capsys):
    small = exported(Variant.TWO_STAGE)
    files = tmp_path / "bundle.json", tmp_path / "checkpoint.json"
    pages = tmp_path / "bundle.html", tmp_path / "checkpoint.html"
    limit = ["--limit", str(LIMIT), "--report"]

    status = main(["--bundle", str(small.directory), "--out", str(files[0]), *limit, str(pages[0])])
    of_the_bundle = capsys.readouterr().out
    model.evaluate.main(
        ["--checkpoint", str(small.checkpoint), "--out", str(files[1]), *limit, str(pages[1])]
    )
    of_the_checkpoint = capsys.readouterr().out

    found, expected = (json.loads(file.read_text()) for file in files)
    assert status == 0
    assert len(found) == len(expected) > 0
    assert [one["image_id"] for one in found] == [one["image_id"] for one in expected]
    np.testing.assert_allclose(
        [one["score"] for one in found], [one["score"] for one in expected], atol=1e-5
    )
    assert of_the_bundle.splitlines()[:12] == of_the_checkpoint.splitlines()[:12]
    assert "openvino" in read_page(pages[0]).text
    assert f"first {LIMIT} images" in read_page(pages[1]).text


def test_a_damaged_bundle_is_named(exported, tmp_path, capsys):
    directory = shutil.copytree(exported(Variant.BASE).directory, tmp_path / "bundle")
    (directory / "weights.bin").unlink()

    status = main(["--bundle", str(directory)])

    assert status == 1
    assert "weights.bin: the manifest names it, but it is missing" in capsys.readouterr().err


def test_thresholds_are_saved_in_the_bundle(tmp_path, capsys):
    directory = shutil.copytree("bundles/demo", tmp_path / "demo")
    Bundle.load(directory).with_manifest(thresholds=None).save()

    status = main(["--bundle", str(directory), "--limit", "10", "--save-thresholds"])

    thresholds = Bundle.load(directory).manifest.thresholds
    assert status == 0
    assert thresholds is not None
    assert f"saved: best F1 at {thresholds.overall}" in capsys.readouterr().out
    assert thresholds.overall.f1 > 0.7


@needs_nvimagecodec
def test_another_decoder_gives_its_own_ap(tmp_path, capsys):
    write_coco(DigitsDataset("val", num_images=LIMIT), tmp_path / "data")
    for path in (tmp_path / "data" / "images" / "val").iterdir():
        Image.open(path).save(path, "JPEG")  # the name does not matter
    argv = ["--bundle", "bundles/demo", "--data", str(tmp_path / "data")]
    files = {name: tmp_path / f"{name}.json" for name in ("cpu", "nvimagecodec-on-cpu")}

    statuses = [
        main([*argv, "--decoder", name, "--out", str(file), "--report", str(tmp_path / "p.html")])
        for name, file in files.items()
    ]

    assert statuses == [0, 0]
    assert files["cpu"].read_bytes() == files["nvimagecodec-on-cpu"].read_bytes()
    assert "nvimagecodec-on-cpu" in read_page(tmp_path / "p.html").text


@needs_nvimagecodec
def test_drawn_images_have_no_other_decoder(capsys):
    status = main(["--bundle", "bundles/demo", "--decoder", "nvimagecodec-on-cpu"])

    assert status == 1
    assert "expected DATA=DIR (--data), a data set of files" in capsys.readouterr().err
