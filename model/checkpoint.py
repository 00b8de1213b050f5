"""Shows checkpoints, and converts published files to checkpoints.

python -m model.checkpoint convert SRC DST    a published file -> a checkpoint
python -m model.checkpoint show FILE          AP, classes, configuration and origin
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.terminal import printable
from model.arguments import at_least_one
from model.checkpoints.file_kind import require_checkpoint, require_checkpoint_name, require_file

# PyTorch takes seconds to import, so mistyped arguments are reported first.


def _show(args: argparse.Namespace) -> None:
    require_checkpoint(args.file)
    from model.checkpoints.checkpoint_file import load_checkpoint
    from model.checkpoints.description import describe

    for line in describe(load_checkpoint(args.file), with_tensors=args.tensors):
        print(printable(line))


def _convert(args: argparse.Namespace) -> None:
    require_file(args.source)
    require_checkpoint_name(args.destination)
    if args.classes is not None:
        require_file(args.classes)
    from model.checkpoints.checkpoint_file import write_checkpoint
    from model.checkpoints.convert import convert
    from model.checkpoints.description import describe_conversion

    checkpoint = convert(
        args.source,
        annotations=args.classes,
        num_heads=args.num_heads,
        num_queries=args.num_queries,
    )
    write_checkpoint(checkpoint, args.destination)
    for line in describe_conversion(checkpoint, args.destination):
        print(printable(line))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; an error is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m model.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    conversion = commands.add_parser("convert", help="turn a published file into a checkpoint")
    conversion.add_argument("source", type=Path, metavar="SRC", help=".pth, .bin or .safetensors")
    conversion.add_argument("destination", type=Path, metavar="DST", help="NAME.safetensors")
    conversion.add_argument(
        "--classes", type=Path, help="COCO annotation file whose categories name the outputs"
    )
    conversion.add_argument(
        "--num-heads",
        type=at_least_one,
        help="attention heads, if the file does not say (default: 8)",
    )
    conversion.add_argument(
        "--num-queries", type=at_least_one,
        help="queries of a two-stage model, if the file does not say (default: 300)",
    )  # fmt: skip
    show = commands.add_parser("show", help="print AP, classes, configuration and origin")
    show.add_argument("file", type=Path)
    show.add_argument("--tensors", action="store_true", help="list the tensors, too")
    args = parser.parse_args(arguments)
    try:
        (_show if args.command == "show" else _convert)(args)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"error: {error}"))


if __name__ == "__main__":
    main()
