"""Ids of an annotation file for the images that are detected in."""

import json
from pathlib import Path

import pytest

from service.detect import main
from service.image_ids import read_image_ids


def annotations(tmp_path: Path, *names: str, first_id: int = 100) -> Path:
    images = [{"id": first_id + at, "file_name": name} for at, name in enumerate(names)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images}))
    return file


def test_results_have_the_ids_of_the_annotation_file(
    toy_bundle: Path, tmp_path: Path, png_bytes: bytes
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png_bytes)
    (tmp_path / "photos" / "b.png").write_bytes(png_bytes)
    file = annotations(tmp_path, "b.png", "a.png", "other.png")
    out = tmp_path / "results.json"

    options = ["--annotations", str(file), "--format", "coco", "--out", str(out), "--top-k", "1"]

    status = main([str(tmp_path / "photos"), "--bundle", str(toy_bundle), *options])

    assert status == 0
    assert [entry["image_id"] for entry in json.loads(out.read_text())] == [101, 100]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.jpg", "val/a.jpg"),
        ("val/a.jpg", "data/val/a.jpg"),
        ("./val/a.jpg", "data/val/a.jpg"),
        ("images/val/a.jpg", "elsewhere/a.jpg"),
        ("my photo.jpg", "val/my photo.jpg"),
    ],
)
def test_a_path_is_known_by_its_end(tmp_path: Path, name: str, path: str) -> None:
    file = annotations(tmp_path, "zebra.jpg", name)

    assert read_image_ids(file, [Path(path)]) == [101]


def test_of_equal_names_in_several_folders_the_longest_fits(tmp_path: Path) -> None:
    file = annotations(tmp_path, "train/a.jpg", "val/a.jpg")

    assert read_image_ids(file, [Path("data/val/a.jpg"), Path("data/train/a.jpg")]) == [101, 100]
    with pytest.raises(ValueError, match="2 images of that name, in several folders"):
        read_image_ids(file, [Path("elsewhere/a.jpg")])


def test_a_path_without_an_entry_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = annotations(tmp_path, "photo-1.jpg", "photo-2.jpg")

    with pytest.raises(ValueError, match=r"x/photo-3.jpg: no image of .* did you mean"):
        read_image_ids(file, [Path("x/photo-3.jpg")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((text, "not valid JSON") for text in ("", "{", "[" * 99999)),
        *((text, "expected") for text in ("[]", "{}", '{"images": 1}', '{"images": [1]}')),
        ('{"images": [{"id": 1}]}', "expected"),
        ('{"images": [{"id": "x", "file_name": "a"}]}', "expected"),
        ('{"images": [{"id": 1, "file_name": 2}]}', "expected"),
    ],
)
def test_a_file_that_is_not_an_annotation_file_is_an_error_that_names_it(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)

    with pytest.raises(ValueError, match=rf"other\.json: {message}"):
        read_image_ids(file, [Path("a.jpg")])


def test_two_images_of_one_file_name_are_refused(tmp_path: Path) -> None:
    file = annotations(tmp_path, "a.jpg", "b.jpg", "./a.jpg")

    with pytest.raises(ValueError, match=r"images 100 and 102 have one file_name, '\./a\.jpg'"):
        read_image_ids(file, [Path("b.jpg")])
