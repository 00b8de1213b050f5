"""What a file is: its digest, and what it is instead of a checkpoint."""

import hashlib
import re
import zipfile
from pathlib import Path

_LFS = "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"
_HTML = "an HTML page, perhaps a login or a confirmation; download the weights themselves"
_TENSORFLOW = "weights of TensorFlow or Keras; only PyTorch's and safetensors files are read"
_ARCHIVE = "{}; unpack it and name the weights file in it"
# First bytes of a file, and what it is.
_BEGINNINGS = (
    (rb"version https://git-lfs", _LFS),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml)", _HTML),
    (rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"\[{}\]\d]", "a JSON file, not the weights"),
    (rb"model_checkpoint_path:", _TENSORFLOW),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file: {_TENSORFLOW}"),
    (rb"....TFL3", f"a TensorFlow Lite model: {_TENSORFLOW}"),
    (rb"\x1f\x8b", _ARCHIVE.format("a gzip archive")),
    (rb"\xfd7zXZ\x00", _ARCHIVE.format("an xz archive")),
    (rb"7z\xbc\xaf\x27\x1c", _ARCHIVE.format("a 7z archive")),
    (rb"Rar!", _ARCHIVE.format("a rar archive")),
    (rb"(?s:.{257})ustar", _ARCHIVE.format("a tar archive")),
    (rb"GGUF", "a GGUF file, for language models"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"%PDF", "a PDF document"),
    (rb"\x89PNG|\xff\xd8\xff", "an image"),
)
_SAFETENSORS_HEADER = 9  # bytes: the length of the JSON, and its first brace


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_checkpoint(path: Path) -> None:
    """Raise ValueError unless this is a file that can be read."""
    _require(path, "no such checkpoint; make train or make weights makes one")


def require_checkpoint_name(path: Path) -> None:
    """Raise ValueError if a checkpoint may not be written under this name."""
    if path.suffix != ".safetensors":
        raise ValueError(f"the name of a checkpoint ends in .safetensors, got {path}")


def require_file(path: Path) -> None:
    """Raise ValueError unless this is a file that can be read."""
    _require(path, "no such file")


def _require(path: Path, missing: str) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: this is a directory; name the file itself")
    if not path.is_file():
        raise ValueError(f"{path}: {missing}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read: {error.strerror}") from error


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file, whatever its name."""
    with path.open("rb") as file:
        return file.read(_SAFETENSORS_HEADER)[8:] == b"{"


def name_foreign_kind(path: Path) -> str | None:
    """What a file is and what to do; None if it may be a PyTorch or safetensors checkpoint."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file; download it again"
    if start[8:9] == b"{":
        return None
    for pattern, kind in _BEGINNINGS:
        if re.match(pattern, start, re.IGNORECASE):
            return kind
    if zipfile.is_zipfile(path):
        return _name_zip(path)
    if re.search(r"\.(index|data-\d+-of-\d+|pb|tflite)$", path.name):
        return _TENSORFLOW
    if path.suffix == ".onnx":
        return (
            "an ONNX graph, whose weights have lost their names; convert the file it was made from"
        )
    return "a text file, not the weights" if _is_text(start) else None


def _name_zip(path: Path) -> str | None:
    """What a zip archive is; None for a file of torch.save, which is one too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        return f"a damaged zip archive or file of torch.save ({error}); download or copy it again"
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        return "a TorchScript program; save the model's state_dict() instead"
    if "data.pkl" in ends:
        return None
    if "model.weights.h5" in ends:
        return f"a Keras archive: {_TENSORFLOW}"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive; only PyTorch's and safetensors files are read"
    return _ARCHIVE.format(f"a zip archive (files: {len(names)}; {', '.join(names[:3])})")


def _is_text(start: bytes) -> bool:
    return all(byte >= 0x20 or byte in b"\t\r\n" for byte in start) and start.isascii()
