"""Makes a bundle of a published detector: downloads, checks, converts and exports it, once.

python -m export.published base|refine|two_stage [--format mmdet2|mmdet3] [--out weights]

Prints the bundle's directory, for `make serve VARIANT=`.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command, raise_at_ctrl_c

    begin_command()

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bundle.manifest import Bundle
from bundle.terminal import log_messages, printable
from engines.base import EngineFailure
from export.stage import ended_by_ctrl_c
from model.checkpoints.published_urls import (
    RELEASES,
    VARIANTS,
    WEIGHTS_DIR,
    checkpoint_name,
    digest_prefix,
    published_url,
)

DATA_SET = "coco"  # that all of them were trained on
# (checkpoint, directory of the new bundle)
Export = Callable[[Path, Path], None]

log = logging.getLogger(__name__)


def published_bundle(url: str, checkpoint: Path, *, export: Export | None = None) -> Path:
    """The directory of a published file's bundle, which is made if it does not exist.

    It is beside the checkpoint, and its name has the digits of the file's SHA-256. Steps that an
    earlier call completed are not repeated, and the download resumes where it stopped.

    Args:
        url: of a file whose name ends in the first digits of its SHA-256.
        checkpoint: where the converted weights are written.
        export: makes the bundle; by default `export_bundle`.

    Raises:
        ValueError, OSError: see `download`, `convert` and `export_bundle`.
    """
    directory = checkpoint.with_name(f"{checkpoint.stem}-{digest_prefix(url)}")
    if directory.exists():
        try:
            Bundle.load(directory)
        except ValueError as error:
            log.warning("%s; making it again", error)
        else:
            return directory
    # PyTorch takes seconds to import, and only a new bundle needs it.
    from model.checkpoints.fetch import fetch_detector

    log.info("downloading %s and converting it", url)
    fetch_detector(url, checkpoint)
    log.info("exporting it, which takes a few minutes and is only done once")
    (export or _export)(checkpoint, directory)
    return directory


def _export(checkpoint: Path, directory: Path) -> None:
    from export.judge.verify import photograph_files
    from export.recipe import export_bundle
    from model.checkpoints.checkpoint_file import load_checkpoint

    export_bundle(load_checkpoint(checkpoint), directory, name=DATA_SET, samples=photograph_files())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the directory of a published detector's bundle, making it if it does not exist."""
    parser = argparse.ArgumentParser(prog="python -m export.published", description=main.__doc__)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--format", choices=tuple(RELEASES), default="mmdet2",
                        help="version of the published files, from 2021 or 2022")  # fmt: skip
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR,
                        help="folder for download, checkpoint and bundle")  # fmt: skip
    parser.add_argument("--base-url", help="a mirror of the published files")
    args = parser.parse_args(argv)
    log_messages()
    logging.getLogger("export").setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    url = published_url(args.variant, file_format=args.format, base_url=args.base_url)
    try:
        name = checkpoint_name(args.variant, file_format=args.format)
        with ended_by_ctrl_c():
            directory = published_bundle(url, args.out / name)
        print(directory)
    except (ValueError, OSError, EngineFailure) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise_at_ctrl_c()
    sys.exit(main())
