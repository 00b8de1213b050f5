"""Progress bars on stderr, whatever becomes of it."""

import io
import os
import sys

import pytest
from tqdm import tqdm

from model.progress import progress_bar


def test_work_goes_on_when_nobody_reads_its_progress_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(pipe, write_through=True))

        done = list(progress_bar(range(3), miniters=1))

    assert done == [0, 1, 2]


def test_a_line_of_the_log_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=3, desc="epoch 1"):
        tqdm.write("a line", file=sys.stderr)

    line = capsys.readouterr().err.split("\n")[0]
    assert line.split("\r")[-1] == "a line"
