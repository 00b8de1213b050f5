from pathlib import Path

import pytest

from bundle.folder import files_below


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in files_below(folder))


def test_folders_behind_links_are_entered(tmp_path: Path) -> None:
    touch(tmp_path / "disk" / "b" / "2.png")
    touch(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")

    assert names(tmp_path / "data") == ["1.png", "images/b/2.png"]


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png")
    touch(tmp_path / "b" / "2.png")
    (tmp_path / "a" / "to-b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to-a").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")

    assert names(tmp_path / "a") == ["1.png", "to-b/2.png"]


@pytest.mark.parametrize("target", ["nowhere.png", "1.png"])
def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(
    tmp_path: Path, target: str
) -> None:
    (tmp_path / "1.png").symlink_to(target)

    assert names(tmp_path) == ["1.png"]


@pytest.mark.parametrize(
    "name",
    [".1.png", "._1.png", ".ipynb_checkpoints/1.png", "__MACOSX/1.png", "@eaDir/1.png/2.jpg"],
)
def test_what_is_hidden_or_of_the_system_is_left_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path / ".data" / name)

    assert names(tmp_path / ".data") == []
    assert names(touch(tmp_path / ".data" / "2.png").parent) == ["2.png"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        list(files_below(tmp_path / "nothing"))
