"""What is said of a file that cannot be written."""

import errno

import pytest

from model.training.full_disk import describe_os_error


@pytest.mark.parametrize(
    ("number", "said", "advice"),
    [
        (errno.ENOSPC, "the disk is full: runs/a: No space left", "Free some space, and the same"),
        (errno.EACCES, "runs/a: Permission denied", "When that is repaired, the same command"),
        (errno.EIO, "runs/a: Input/output error", "When that is repaired, the same command"),
    ],
)
def test_what_failed_comes_with_what_to_do(number: int, said: str, advice: str) -> None:
    error = OSError(number, said.rsplit(": ")[-1], "runs/a")

    line = describe_os_error(error)

    assert line.startswith(said)
    assert f". {advice}" in line
    assert "continues from the last save" in line
