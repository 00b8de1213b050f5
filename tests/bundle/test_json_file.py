"""JSON files in any encoding, and what other files are called."""

import gzip
import json
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from bundle.json_file import read_json

CONTENT = [{"name": "Mutter, weiß"}]
TEXT = json.dumps(CONTENT, ensure_ascii=False)
PATH = Path("train.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_encoding_is_told_from_the_bytes(encoding: str) -> None:
    assert read_json(TEXT.encode(encoding), PATH) == CONTENT


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.json", TEXT)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (gzip.compress(TEXT.encode(), mtime=0), "a gzip archive; unpack it first"),
        (zipped(), "a zip archive; unpack it first"),
        (TEXT.encode("latin-1"), "save it as UTF-8"),
        (b"[" * 99999, "nested too deep"),
        (TEXT.encode()[:-3], "Unterminated string"),
        (b'{"a": 1}\n{"a": 2}\n', "one JSON value per line"),
        (b"0 0.5 0.5 0.1 0.1\n", "Extra data"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html>", "an HTML or XML page"),
    ],
)
def test_a_file_that_is_not_json_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^train\.json: not valid JSON.*{message}"):
        read_json(data, PATH)


def test_a_number_without_end_is_refused_with_the_name_of_the_file() -> None:
    with pytest.raises(ValueError, match=r"^train\.json: Exceeds the limit"):
        read_json(b"9" * 5000, PATH)
