"""OUT belongs to one run at a time, and holds nothing that killed ones left half written."""

import errno
import fcntl
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from model.train import main
from model.training.run_directory import LOCK_FILE, held


def hold(out_dir: Path, tell: Connection) -> None:
    """Hold OUT for ever, with a child, as the processes that load images are."""
    with held(out_dir):
        child = os.fork()
        if child:
            tell.send(child)
        signal.pause()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[BaseProcess]:
    """Another process that holds OUT, and whose child outlives it."""
    forks = multiprocessing.get_context("fork")
    listen, tell = forks.Pipe(duplex=False)
    process = forks.Process(target=hold, args=(tmp_path / "out", tell))
    process.start()
    child = listen.recv()
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.join()


def test_a_second_run_is_refused_and_changes_nothing(
    holder: BaseProcess, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out_dir = tmp_path / "out"
    half_written = out_dir / f".last.safetensors.{holder.pid}.tmp"
    half_written.touch()

    status = main(["--config", "tiny", "--data", str(images), "--out", str(out_dir)])

    assert status == 1
    assert f"error: another run writes to {out_dir}: wait for its end or stop it" in caplog.text
    assert "choose another OUT= (--out)" in caplog.text
    assert sorted(path.name for path in out_dir.iterdir()) == [half_written.name, LOCK_FILE]


def test_a_killed_run_holds_nothing_though_its_processes_live_on(
    holder: BaseProcess, tmp_path: Path
) -> None:
    holder.kill()
    holder.join()

    with held(tmp_path / "out"):
        pass


def test_what_a_killed_run_left_half_written_is_deleted(
    holder: BaseProcess, tmp_path: Path
) -> None:
    half_written = tmp_path / "out" / f".new.last.training.pt.{holder.pid}.tmp"
    half_written.touch()
    holder.kill()
    holder.join()

    with held(tmp_path / "out"):
        found = list((tmp_path / "out").iterdir())

    assert found == [tmp_path / "out" / LOCK_FILE]


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_a_file_is_no_place_for_a_run(
    out: str, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    out_dir = tmp_path / out

    status = main(["--config", "tiny", "--data", str(images), "--out", str(out_dir)])

    assert status == 1
    assert f"error: OUT= (--out): {out_dir} cannot be a directory" in caplog.text
    assert "choose another" in caplog.text


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)

    with held(tmp_path):
        pass

    assert "cannot be locked (No locks available): start no other run" in caplog.text
