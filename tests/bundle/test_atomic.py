import errno
import os
import subprocess
from pathlib import Path

import pytest

from bundle.atomic import make_place_for, remove_abandoned, write_atomically


def test_a_new_file_is_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a much longer old content")

    write_atomically(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(_: int) -> None:
        raise failure

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(type(failure)):
        write_atomically(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_only_half_written_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    own, abandoned = (tmp_path / f".a.pt.{number}.tmp" for number in (os.getpid(), ended.pid))
    kept = [tmp_path / name for name in (f".a.pt.{os.getppid()}.tmp", ".notes.tmp", "a.pt.1.tmp")]
    for path in (own, abandoned, *kept):
        path.touch()
    (tmp_path / f".bundle.{ended.pid}.tmp").mkdir()

    remove_abandoned(tmp_path)

    assert set(tmp_path.iterdir()) == {*kept, tmp_path / f".bundle.{ended.pid}.tmp"}


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)

    with pytest.raises(PermissionError, match="no file can be written there"):
        make_place_for(tmp_path / "file")


def test_a_file_is_not_written_in_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a file to write, got the folder"):
        make_place_for(tmp_path)
