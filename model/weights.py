"""Downloads published weights and turns them into files of this project.

python -m model.weights base|refine|two_stage [--format mmdet2|mmdet3] [--out weights]
python -m model.weights resnet50     the ImageNet backbone that training starts from
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from model.checkpoints.checkpoint_file import load_checkpoint, write_checkpoint, write_tensors
from model.checkpoints.convert import convert, sha256
from model.checkpoints.download import Sleep, download
from model.checkpoints.published_file import read_content
from model.checkpoints.published_urls import (
    BACKBONE,
    RELEASES,
    VARIANTS,
    WEIGHTS_DIR,
    checkpoint_name,
    digest_prefix,
    published_url,
)


def fetch_detector(url: str, checkpoint: Path, *, sleep: Sleep = time.sleep) -> None:
    """Downloads a published file to the checkpoint's directory and converts it.

    Does nothing if the checkpoint made of that file is there already.
    """
    source = checkpoint.with_name(url.rsplit("/", 1)[1])
    if checkpoint.is_file():
        digest = load_checkpoint(checkpoint).provenance.get("sha256", "")
        if digest.startswith(digest_prefix(source.name)):
            return
    download(url, source, sleep=sleep)
    write_checkpoint(convert(source), checkpoint)


def fetch_backbone(url: str, path: Path, *, sleep: Sleep = time.sleep) -> None:
    """Downloads torchvision's ResNet-50 and writes its tensors as `backbone.*` to `path`."""
    source = path.with_name(url.rsplit("/", 1)[1])
    download(url, source, sleep=sleep)
    tensors = {
        f"backbone.{name}": tensor
        for name, tensor in read_content(source).items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    metadata = {"source": source.name, "sha256": sha256(source)}
    write_tensors(path, tensors, metadata=metadata)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a fault ends in one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m model.weights", description=__doc__)
    parser.add_argument("variant", choices=(*VARIANTS, BACKBONE))
    parser.add_argument("--format", choices=tuple(RELEASES), default="mmdet2",
                        help="whose published files, of 2021 or 2022")  # fmt: skip
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--base-url", help="a mirror of the place the files are published at")
    args = parser.parse_args(arguments)
    url = published_url(args.variant, file_format=args.format, base_url=args.base_url)
    path = args.out / checkpoint_name(args.variant, file_format=args.format)
    try:
        (fetch_backbone if args.variant == BACKBONE else fetch_detector)(url, path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(path)


if __name__ == "__main__":
    main()
