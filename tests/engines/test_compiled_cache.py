from pathlib import Path

import pytest

from engines.compiled_cache import keep_compiled, read_compiled


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


def test_a_newer_one_takes_the_place(tmp_path: Path) -> None:
    keep(tmp_path)

    keep(tmp_path, b"newer", "newer key")

    assert read_compiled(tmp_path, "name", key="newer key") == b"newer"
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"compile", b"compileD", b"compiled and more"])
def test_a_damaged_file_is_not_read(tmp_path: Path, content: bytes) -> None:
    keep(tmp_path)
    (tmp_path / "cache" / "name").write_bytes(content)

    assert read_compiled(tmp_path, "name", key="key") is None


def test_a_directory_that_cannot_be_written_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    caplog.set_level("INFO")

    keep(tmp_path)

    assert "cannot be kept" in caplog.text
    assert (tmp_path / "cache").read_text() == "a file is in the way"
