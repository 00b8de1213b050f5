"""Downloads published weights and turns them into files of this project.

python -m model.weights base|refine|two_stage [--format mmdet2|mmdet3] [--out weights]
python -m model.weights resnet18|resnet34|resnet50|resnet101     the ImageNet backbone that training
    starts from
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.terminal import printable
from model.checkpoints.published_urls import (
    BACKBONES,
    RELEASES,
    VARIANTS,
    WEIGHTS_DIR,
    checkpoint_name,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; an error is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m model.weights", description=__doc__)
    parser.add_argument("variant", choices=(*VARIANTS, *BACKBONES))
    parser.add_argument("--format", choices=tuple(RELEASES), default="mmdet2",
                        help="version of the published files, from 2021 or 2022")  # fmt: skip
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--base-url", help="a mirror of the site that publishes the files")
    args = parser.parse_args(arguments)
    # PyTorch takes seconds to import, so mistyped arguments are reported first.
    from model.checkpoints.fetch import fetch_published

    path = args.out / checkpoint_name(args.variant, file_format=args.format)
    try:
        fetch_published(args.variant, path, file_format=args.format, base_url=args.base_url)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"error: {error}"))
    print(path)


if __name__ == "__main__":
    main()
