import os
from pathlib import Path

import pytest

from engines.compiled_cache import MOST_KEPT, keep_compiled, read_compiled


def keep(bundle: Path, compiled: bytes = b"compiled", key: str = "key") -> None:
    keep_compiled(bundle, "name", key=key, export=lambda: memoryview(compiled))


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    keep(tmp_path)

    assert read_compiled(tmp_path, "name", key="key") == b"compiled"


def test_nothing_is_read_where_nothing_was_kept(tmp_path: Path) -> None:
    assert read_compiled(tmp_path, "name", key="key") is None


def test_what_was_made_for_another_key_is_not_read(tmp_path: Path) -> None:
    keep(tmp_path)

    assert read_compiled(tmp_path, "name", key="another key") is None


def test_machines_that_share_a_bundle_keep_their_own(tmp_path: Path) -> None:
    keep(tmp_path, b"one", "machine 1")
    keep(tmp_path, b"other", "machine 2")

    assert read_compiled(tmp_path, "name", key="machine 1") == b"one"
    assert read_compiled(tmp_path, "name", key="machine 2") == b"other"


def test_those_not_used_for_longest_give_way(tmp_path: Path) -> None:
    keys = [f"machine {number}" for number in range(MOST_KEPT + 2)]
    keep_compiled(tmp_path, "longer name", key="a", export=lambda: memoryview(b"compiled"))

    for key in keys:
        keep(tmp_path, key=key)
        for file in (tmp_path / "cache").iterdir():
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
        read_compiled(tmp_path, "name", key=keys[0])

    kept = [key for key in keys if read_compiled(tmp_path, "name", key=key)]
    assert kept == [keys[0], *keys[3:]]
    assert read_compiled(tmp_path, "longer name", key="a") == b"compiled"
    assert len(list((tmp_path / "cache").iterdir())) == 2 * (MOST_KEPT + 1)


@pytest.mark.parametrize("content", [b"", b"compile", b"compileD", b"compiled and more"])
def test_a_damaged_file_is_not_read(tmp_path: Path, content: bytes) -> None:
    keep(tmp_path)
    (path,) = (tmp_path / "cache").glob("*-name")
    path.write_bytes(content)

    assert read_compiled(tmp_path, "name", key="key") is None


def test_a_directory_that_cannot_be_written_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    caplog.set_level("INFO")

    keep(tmp_path)

    assert "cannot be kept" in caplog.text
    assert (tmp_path / "cache").read_text() == "a file is in the way"
