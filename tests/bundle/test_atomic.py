import errno
import os
from pathlib import Path

import pytest

from bundle.atomic import write_atomically


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
