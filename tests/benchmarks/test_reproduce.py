"""Published results from a local server, with images of digits in place of COCO's."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.coco_val import Archive, fetch_archives
from benchmarks.published_results import Result, format_results, load_result, save_result
from benchmarks.reproduce import Sources, report, reproduce
from engines.cpu import openvino_engine
from model.data.digits import DigitsDataset
from model.training.precision import set_tf32
from tests.data.parity.make_checkpoint import checkpoint
from tests.file_server import Server

DEMO = Path(__file__).parents[2] / "bundles" / "demo"

NUM_IMAGES = 2
CLASSES = DigitsDataset.classes[:7]  # as many as the small detector has
ANNOTATIONS = "annotations/instances_val2017.json"
Run = Callable[..., list[Result]]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def serve_zip(server: Server, name: str, *, kept: str, files: dict[str, bytes]) -> Archive:
    content = zip_of(files)
    server.files[f"/{name}"] = content
    return Archive(f"{server.url}/{name}", hashlib.sha256(content).hexdigest(), kept)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def archives(server: Server) -> list[Archive]:
    """Images of digits as COCO publishes its own, beside files that nobody needs."""
    data = DigitsDataset("val", num_images=NUM_IMAGES)
    images = {f"{data.image_id(i)}.png": png(data.read_image(i)) for i in range(NUM_IMAGES)}
    ids = {info.id for info in CLASSES}
    truth = data.ground_truth()
    truth["images"] = [{**image, "file_name": f"{image['id']}.png"} for image in truth["images"]]
    for part, key in (("annotations", "category_id"), ("categories", "id")):
        truth[part] = [entry for entry in truth[part] if entry[key] in ids]
    annotations = {ANNOTATIONS: json.dumps(truth).encode(), "annotations/captions.json": b"{}"}
    images = {f"val2017/{name}": content for name, content in images.items()}
    return [
        serve_zip(server, "annotations.zip", kept=ANNOTATIONS, files=annotations),
        serve_zip(server, "val2017.zip", kept="val2017", files={"val2017/": b"", **images}),
    ]


@pytest.fixture
def exports() -> list[Path]:
    """The checkpoints that were exported."""
    return []


@pytest.fixture
def run(tmp_path: Path, server: Server, archives: list[Archive], exports: list[Path]) -> Run:
    """`reproduce` of a small base detector; the demo's bundle stands in for what takes a minute."""

    def export(checkpoint: Path, directory: Path) -> None:
        exports.append(checkpoint)
        shutil.copytree("bundles/demo", directory, dirs_exist_ok=True)

    weights = checkpoint("base", "mmdet2")
    weights["meta"] = {**weights["meta"], "CLASSES": tuple(info.name for info in CLASSES)}
    sources = Sources({"base": server.put(weights)}, archives)
    return partial(reproduce, sources, tmp_path / "out", export=export)


@pytest.mark.slow
def test_checkpoint_and_bundle_are_evaluated_and_nothing_is_done_twice(
    run: Run, server: Server, exports: list[Path], tmp_path: Path
) -> None:
    forms = ("checkpoint", "int8")
    set_tf32(True)

    results = run(forms=forms)
    num_requests = len(server.requests)
    again = run(forms=forms)

    by_form = {result.form: result.numbers["AP"] for result in results}
    assert list(by_form) == [*forms]
    assert by_form["checkpoint"] < 0.1 < 0.5 < by_form["int8"]
    assert again == results
    assert not torch.backends.cudnn.allow_tf32  # of a GPU, where it is on by default
    assert num_requests == len(server.requests) == 3
    assert exports == [tmp_path / "out/base.safetensors"]


def test_a_precision_that_the_machine_does_not_compute_is_left_open(
    tmp_path: Path, server: Server, archives: list[Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_precisions", lambda core, form: {"fp32", "int8"})
    sources = Sources({"refine": server.put(checkpoint("refine", "mmdet2"))}, archives)
    export = lambda _, out: shutil.copytree(DEMO, out, dirs_exist_ok=True)  # noqa: E731

    (found,) = reproduce(sources, tmp_path, forms=("bf16",), export=export)

    assert found.numbers == {}
    assert "computes bf16 in fp32 on this machine" in found.note


def test_a_result_counts_only_under_the_conditions_it_was_measured_in(tmp_path: Path) -> None:
    stored, conditions = result("fp32", 0.46), {"images": 500, "machine": "a"}
    save_result(tmp_path / "new/x.json", stored, conditions=conditions)

    assert load_result(tmp_path / "new/x.json", conditions) == stored
    assert load_result(tmp_path / "new/x.json", {**conditions, "images": 5000}) is None
    assert load_result(tmp_path / "new/y.json", conditions) is None


def test_an_archive_whose_download_broke_goes_on_and_leaves_nothing_but_its_files(
    tmp_path: Path, server: Server, archives: list[Archive]
) -> None:
    server.breaks = [100]

    fetch_archives(archives, tmp_path, sleep=lambda _: None)

    assert [wanted for _, wanted in server.requests] == [None, "bytes=100-", None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "val2017"]
    assert [path.name for path in (tmp_path / "annotations").iterdir()] == [Path(ANNOTATIONS).name]
    assert len(list((tmp_path / "val2017").iterdir())) == NUM_IMAGES


def test_an_archive_of_other_content_is_refused(
    tmp_path: Path, server: Server, archives: list[Archive]
) -> None:
    server.files["/val2017.zip"] += b"more"

    with pytest.raises(ValueError, match=r"val2017\.zip is not the published file"):
        fetch_archives(archives, tmp_path)

    assert not (tmp_path / "val2017").exists()


def result(form: str, ap: float) -> Result:
    return Result("two_stage", form, {"AP": ap, "AP50": 0.66}, 1.5, "OpenVINO")


@pytest.mark.parametrize(("ap", "verdict"), [(0.4661, "within"), (0.4659, "**OUTSIDE**")])
def test_results_stand_beside_the_published_ones(ap: float, verdict: str) -> None:
    table = format_results([result("fp32", ap)], is_whole=True)

    difference = f"{100 * ap - 46.8:+.2f}"
    row = f"| two_stage | fp32 | {100 * ap:.2f} | 46.8 | {difference} | 0.2 | 66.00 | 1.50 "
    assert table.splitlines()[-1] == f"{row}| {verdict}; OpenVINO |"


def test_only_exact_results_of_all_images_can_fail(tmp_path: Path) -> None:
    wrong, right = result("fp32", 0.40), result("fp32", 0.468)

    assert report([wrong], tmp_path, limit=None) == 1
    assert report([right, result("int8", 0.40)], tmp_path, limit=None) == 0
    assert report([wrong], tmp_path, limit=500) == 0
    pages = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert "| 46.8 | open | 0.2 |" in pages[0]
    assert "first 500 images" in pages[0]
    assert "| 46.8 | -6.80 | 0.2 |" in pages[1]
