"""Files that are not checkpoints are named for what they are."""

import errno
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from model.checkpoints.checkpoint_file import load_checkpoint
from model.checkpoints.convert import convert
from model.checkpoints.file_kind import name_foreign_kind, require_checkpoint, require_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 163000000\n"


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return buffer.getvalue()


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


FOREIGN = {
    "lfs": (LFS, "a Git LFS pointer.*git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "an HTML page.*login"),
    "html without doctype": (b"<HTML><body>404", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an HTML page"),
    "json": (b'{"activation_function": "relu"}', "a JSON file"),
    "text": (b"base_lr: 0.1\n", "a text file"),
    "empty": (b"", "an empty file"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file.*TensorFlow or Keras"),
    "keras 3": (_zip("config.json", "model.weights.h5"), "a Keras archive"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "a TensorFlow Lite model"),
    "tensorflow": (b'model_checkpoint_path: "model.ckpt-1"', "weights of TensorFlow"),
    "zip": (_zip("readme.txt", "weights/model.pth"), "a zip archive .files: 2; readme.*unpack"),
    "npz": (_zip("a.npy", "b.npy"), "a NumPy archive"),
    "damaged zip": (b"x" * 40 + b"PK\5\6" + b"0" * 18, "a damaged zip archive .*copy it again"),
    "torchscript": (_zip("m/data.pkl", "m/constants.pkl"), "a TorchScript program"),
    "tar": (_tar(), "a tar archive"),
    "gzip": (gzip.compress(b"x"), "a gzip archive"),
    "png": (_png(), "an image"),
    "pdf": (b"%PDF-1.7", "a PDF"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    content, message = FOREIGN[name]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"x{suffix} is {message}"):
        convert(path)


@pytest.mark.parametrize("name", ["lfs", "html", "empty", "zip"])
def test_a_checkpoint_that_is_none_is_named_too(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    path = tmp_path / "best.safetensors"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"best.safetensors is {message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("require", [require_checkpoint, require_file])
def test_a_file_that_cannot_be_opened_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x")

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(ValueError, match=r"a\.safetensors: it cannot be read: Permission denied"):
        require(path)


@pytest.mark.parametrize("require", [require_checkpoint, require_file])
def test_a_directory_or_a_link_to_itself_is_no_checkpoint(
    tmp_path: Path, require: Callable[[Path], None]
) -> None:
    link = tmp_path / "loop.safetensors"
    link.symlink_to(link)

    with pytest.raises(ValueError, match="this is a directory; name the file itself"):
        require(tmp_path)
    with pytest.raises(ValueError, match=r"loop\.safetensors: no such"):
        require(link)


@pytest.mark.parametrize(
    "name", ["model.ckpt-7.index", "m.data-00000-of-00001", "saved_model.pb", "m.onnx"]
)
def test_a_binary_of_another_framework_is_recognised_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(range(8)) * 9)

    assert name_foreign_kind(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_file_of_torch_is_none_of_these(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=is_zip)

    assert name_foreign_kind(path) is None


def test_a_file_of_safetensors_is_none_of_these(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}))

    assert name_foreign_kind(path) is None


def test_random_bytes_are_not_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(np.random.default_rng(0).bytes(600))

    assert name_foreign_kind(path) is None
