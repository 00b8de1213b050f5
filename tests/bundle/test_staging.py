import pytest

from bundle.staging import staged


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_new_directory_takes_its_place_when_all_is_done(tmp_path):
    out = tmp_path / "bundles" / "new"

    with staged(out) as directory:
        (directory / "file").write_text("new")
        assert not out.exists()

    assert (out / "file").read_text() == "new"
    assert names_in(out.parent) == ["new"]


def test_a_directory_that_was_there_is_replaced_whole(tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").write_text("old")

    with staged(out) as directory:
        (directory / "file").write_text("new")

    assert names_in(out) == ["file"]
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("no space left"), ValueError])
def test_what_stops_the_work_leaves_the_old_directory_and_nothing_else(tmp_path, stop):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").write_text("old")

    def work():
        with staged(out) as directory:
            (directory / "file").write_text("half")
            raise stop

    with pytest.raises((KeyboardInterrupt, OSError, ValueError)):
        work()

    assert (out / "old").read_text() == "old"
    assert names_in(tmp_path) == ["bundle"]


def test_a_new_directory_that_is_gone_leaves_the_old_one(tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").write_text("old")

    with pytest.raises(FileNotFoundError), staged(out) as directory:
        directory.rmdir()  # by another program

    assert (out / "old").read_text() == "old"
    assert names_in(tmp_path) == ["bundle"]


def test_a_link_to_itself_cannot_be_a_bundle(tmp_path):
    out = tmp_path / "out"
    out.symlink_to(out)

    with pytest.raises(NotADirectoryError), staged(out) as directory:
        (directory / "file").write_text("new")

    assert list(tmp_path.iterdir()) == [out]
