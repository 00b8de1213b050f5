import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.preprocess import decode_image
from engines.base import EngineFailure
from engines.cpu.openvino_engine import OpenVinoEngine
from service.detect import find_images, main
from tests.toy_bundle import SCALED_GRAPH, make_toy_bundle


@pytest.fixture
def photos(tmp_path: Path, png_bytes: bytes, jpeg_bytes: bytes) -> Path:
    """A folder with a scene in two formats, one of them in a folder below, and another file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "b.png").write_bytes(png_bytes)
    (folder / "more" / "a.JPG").write_bytes(jpeg_bytes)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(toy_bundle: Path) -> Callable[..., int]:
    """Run the command on the toy bundle and return its exit status."""
    return lambda *args: main([*map(str, args), "--bundle", str(toy_bundle)])


def test_images_behind_a_link_are_found(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photos").symlink_to(photos)

    assert find_images([tmp_path / "links"]) == [
        tmp_path / "links" / "photos" / "b.png",
        tmp_path / "links" / "photos" / "more" / "a.JPG",
    ]


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "scan.tif", "a.gif"])
def test_images_of_other_formats_in_a_folder_are_counted(
    run: Callable[..., int], photos: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / name).write_bytes(b"?")

    run(photos)

    said = capsys.readouterr().err
    assert "left out: 1 images of formats that are not accepted, such as " in said
    assert name in said


def test_folders_are_searched_to_their_depths_in_order(photos: Path) -> None:
    assert find_images([photos]) == [photos / "b.png", photos / "more" / "a.JPG"]


def test_files_keep_the_order_in_which_they_are_given(photos: Path) -> None:
    assert find_images([photos / "notes.txt", photos]) == [
        photos / "notes.txt",
        photos / "b.png",
        photos / "more" / "a.JPG",
    ]


def test_detections_are_printed_as_the_service_answers(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(photos)

    answer = json.loads(capsys.readouterr().out)
    first, second = answer["results"]
    red, green = first["detections"]
    assert status == 0
    assert answer["model"]["name"] == "toy"
    assert (first["image_id"], second["image_id"]) == (0, 1)
    assert first["file_name"] == str(photos / "b.png")
    assert (first["width"], first["height"]) == (128, 96)
    assert (red["category_id"], red["category_name"]) == (10, "red")
    assert red["score"] == pytest.approx(230 / 255, abs=1e-3)
    assert red["bbox"] == pytest.approx([16, 24, 48, 48], abs=2)
    assert green["category_name"] == "green"


def test_threshold_and_top_k_filter(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos / "b.png", "--threshold", "0.8")
    above = json.loads(capsys.readouterr().out)
    run(photos / "b.png", "--threshold", "0", "--top-k", "2")
    best = json.loads(capsys.readouterr().out)

    assert [d["category_name"] for d in above["results"][0]["detections"]] == ["red"]
    assert [d["category_name"] for d in best["results"][0]["detections"]] == ["red", "green"]


def test_coco_format_is_a_results_list_with_the_index_as_image_id(
    run: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    status = run(photos, "--format", "coco", "--out", tmp_path / "new" / "results.json")

    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert status == 0
    assert [(r["image_id"], r["category_id"]) for r in results] == [
        (0, 10),
        (0, 20),
        (1, 10),
        (1, 20),
    ]
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}


def test_each_image_is_drawn(run: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    run(photos, "--draw", tmp_path / "drawn")

    drawings = sorted((tmp_path / "drawn").iterdir())
    assert [drawing.name for drawing in drawings] == ["00000-b.jpg", "00001-a.jpg"]
    assert decode_image(drawings[0].read_bytes()).shape == (384, 512, 3)


def test_a_file_whose_name_is_no_text_loses_no_result(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = photos / "more" / "a.JPG"
    odd.rename(odd.with_name(os.fsdecode(b"\xe9t\xe9.jpg")))

    status = run(photos, "--draw", photos / "drawn")

    names = [result["file_name"] for result in json.loads(capsys.readouterr().out)["results"]]
    assert status == 0
    assert names == [str(photos / "b.png"), str(photos / "more" / r"\udce9t\udce9.jpg")]


def test_a_bad_image_is_named_and_the_others_are_answered(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(photos / "notes.txt", photos)

    captured = capsys.readouterr()
    assert status == 1
    assert [result["image_id"] for result in json.loads(captured.out)["results"]] == [1, 2]
    assert "notes.txt: expected a JPEG, PNG or WebP image" in captured.err
    assert "3/3" in captured.err


def test_without_one_image_that_can_be_read_there_are_no_results(
    run: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(photos / "notes.txt", "--out", tmp_path / "found.json")

    assert status == 2
    assert "no image could be read" in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_a_path_that_is_not_there_is_an_error_before_any_work(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(photos, photos / "missing.png", photos / "no folder")

    captured = capsys.readouterr()
    assert exit_info.value.code == 2
    assert "missing.png, " in captured.err
    assert "no folder; a path with spaces is quoted" in captured.err
    assert captured.out == ""


def test_an_engine_failure_costs_its_own_image_only(
    run: Callable[..., int],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = OpenVinoEngine.run
    calls: list[int] = []

    def fail_fifth(engine: OpenVinoEngine, *args: np.ndarray) -> object:
        calls.append(1)
        if len(calls) == 5:  # the known answers take four
            raise EngineFailure("broken")
        return answer(engine, *args)

    monkeypatch.setattr(OpenVinoEngine, "run", fail_fifth)

    status = run(photos)

    captured = capsys.readouterr()
    assert status == 1
    assert "b.png: broken" in captured.err
    assert len(json.loads(captured.out)["results"]) == 1


def test_nothing_is_detected_with_an_engine_that_is_silently_wrong(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)

    status = main([str(photos), "--bundle", str(tmp_path / "wrong")])

    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "does not give the bundle's known answers" in captured.err


def test_an_interrupt_leaves_the_old_file(
    run: Callable[..., int], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out" / "results.json"
    out.parent.mkdir()
    out.write_text("old")
    monkeypatch.setattr(OpenVinoEngine, "run", interrupt)

    status = run(photos, "--out", out)

    assert status == 130
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]


def test_a_missing_bundle_names_the_command_that_makes_one(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([str(photos), "--bundle", str(tmp_path)])

    assert status == 2
    assert "make export" in capsys.readouterr().err


def test_a_full_disk_is_an_error_and_leaves_the_old_file(
    run: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out" / "results.json"
    out.parent.mkdir()
    out.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)

    status = run(photos, "--out", out)

    assert status == 2
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_is_not_an_output_file(
    run: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(photos, "--out", tmp_path)

    assert "expected a file, got the folder" in capsys.readouterr().err


def test_drawings_are_refused_where_a_file_is(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(photos, "--draw", photos / "notes.txt")

    assert "--draw: expected a folder, got the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--threshold", "1.5"], "threshold: Input should be less than or equal to 1"),
        (["--num-detections", "0"], "num_detections: Input should be greater than or equal to 1"),
        (["--format", "xml"], "invalid choice"),
    ],
)
def test_options_out_of_range_are_refused(
    run: Callable[..., int],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(photos, *args)

    assert message in capsys.readouterr().err


def test_a_folder_without_images_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path)

    assert "no .jpg, .jpeg, .jfif, .png, .webp files in" in capsys.readouterr().err


def test_more_detections_than_the_model_has_are_refused_at_once(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(photos, "--num-detections", "4")

    assert status == 2
    assert "expected at most 3, which is what 'toy' finds" in capsys.readouterr().err


def test_a_pipe_among_the_images_is_named_and_not_waited_for(
    run: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photos / "pipe.png")

    status = run(photos / "pipe.png", photos / "b.png")

    shown = capsys.readouterr()
    assert status == 1
    assert "it is a named pipe, not a file" in shown.err
    assert len(json.loads(shown.out)["results"]) == 1
