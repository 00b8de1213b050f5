"""The file of an image is found, whatever folders a tool writes before its name."""

import pytest

from model.data.image_files import find_image


@pytest.mark.parametrize(
    ("file_name", "stored"),
    [
        ("1.png", "images/1.png"),
        ("day/1.png", "images/day/1.png"),
        ("images/1.png", "images/1.png"),
        ("images\\1.png", "images/1.png"),
        ("day\\1.png", "images/day/1.png"),
        ("upload/7/1.png", "images/1.png"),
        ("/data/upload/1.png", "images/1.png"),
        ("odd\\name.png", "images/odd\\name.png"),
        ("day/\xe4.png", "images/day/a\u0308.png"),  # as macOS decomposes it
        ("day\\a\u0308.png", "images/\xe4.png"),
    ],
)
def test_an_image_is_found_behind_the_folders_that_a_tool_writes(tmp_path, file_name, stored):
    (tmp_path / stored).parent.mkdir(parents=True)
    (tmp_path / stored).touch()

    assert find_image(file_name, tmp_path / "images", data_dir=tmp_path) == tmp_path / stored


def test_an_image_that_is_nowhere_is_missing_with_the_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images/day/1\.png.*nor .*images/1\.png"):
        find_image("day/1.png", tmp_path / "images", data_dir=tmp_path)
