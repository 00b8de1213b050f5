"""Downloads published weights and turns them into files of this project."""

import time
from pathlib import Path

from model.checkpoints.checkpoint_file import load_checkpoint, write_checkpoint, write_tensors
from model.checkpoints.convert import convert
from model.checkpoints.download import Sleep, download
from model.checkpoints.file_kind import sha256
from model.checkpoints.published_file import read_content
from model.checkpoints.published_urls import BACKBONES, digest_prefix, published_url


def fetch_published(
    name: str, path: Path, *, file_format: str = "mmdet2", base_url: str | None = None
) -> None:
    """Download the published weights of a variant or a backbone, and convert them to `path`.

    Raises:
        ValueError: the server cannot be reached, or has another file.
        OSError: the disk is full.
    """
    url = published_url(name, file_format=file_format, base_url=base_url)
    (fetch_backbone if name in BACKBONES else fetch_detector)(url, path)


def fetch_detector(url: str, checkpoint: Path, *, sleep: Sleep = time.sleep) -> None:
    """Download a published file to the checkpoint's directory and convert it.

    Does nothing if the checkpoint was already made from that file.
    """
    source = checkpoint.with_name(url.rsplit("/", 1)[1])
    if checkpoint.is_file():
        digest = load_checkpoint(checkpoint).provenance.get("sha256", "")
        if digest.startswith(digest_prefix(source.name)):
            return
    download(url, source, sleep=sleep)
    write_checkpoint(convert(source), checkpoint)


def fetch_backbone(url: str, path: Path, *, sleep: Sleep = time.sleep) -> None:
    """Download a ResNet of torchvision and write its tensors as `backbone.*` to `path`."""
    source = path.with_name(url.rsplit("/", 1)[1])
    download(url, source, sleep=sleep)
    tensors = {
        f"backbone.{name}": tensor
        for name, tensor in read_content(source).items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    metadata = {"source": source.name, "sha256": sha256(source)}
    write_tensors(path, tensors, metadata=metadata)
