"""What is no file is refused where one is expected, instead of being read for ever."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.regular_file import require_file


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a named pipe"), (make_socket, "a socket")])
def test_what_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], what: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(Path("x"))
    Path("link").symlink_to("x")

    for path in (Path("x"), Path("link")):
        with pytest.raises(OSError, match=f"it is {what}, not a file: '{path}'"):
            require_file(path)


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="it is a device, not a file"):
        require_file(Path("/dev/zero"))


def test_files_and_the_output_of_another_process_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    reading, writing = os.pipe()
    os.write(writing, b"output")
    os.close(writing)

    assert require_file(tmp_path / "x").read_bytes() == b"content"
    assert require_file(Path(f"/proc/self/fd/{reading}")).read_bytes() == b"output"
    os.close(reading)
