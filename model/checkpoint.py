"""Shows checkpoints, and converts published files to checkpoints.

python -m model.checkpoint convert SRC DST    a published file -> a checkpoint
python -m model.checkpoint show FILE          what a checkpoint holds
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from model.checkpoints.checkpoint_file import Checkpoint, load_checkpoint, write_checkpoint
from model.checkpoints.convert import convert


def _show(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    print(json.dumps(checkpoint.header(), indent=2))
    for name, tensor in checkpoint.state_dict.items():
        print(f"{name:60} {str(tensor.dtype).removeprefix('torch.'):9} {tuple(tensor.shape)}")
    total = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    print(f"{len(checkpoint.state_dict)} tensors, {total:,} values")


def print_conversion(checkpoint: Checkpoint, destination: Path) -> None:
    """Print what a published file was converted to: output -> id -> name."""
    made, model = checkpoint.provenance, checkpoint.config.model
    print(f"{destination}: {model.variant}, {model.num_classes} classes, from {made['layout']}")
    images = checkpoint.config.preprocess
    print(f"images: short side {images.short_side}, long side at most {images.long_side} pixels")
    print(f"classes: {made['classes']}\noutput -> id -> name")
    for output, info in enumerate(checkpoint.classes):
        print(f"{output:>6} -> {info.id} -> {info.name}")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


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
        type=_count,
        help="attention heads, if the file does not say (default: 8)",
    )
    conversion.add_argument(
        "--num-queries", type=_count,
        help="queries of a two-stage model, if the file does not say (default: 300)",
    )  # fmt: skip
    show = commands.add_parser("show", help="print header and tensors of a checkpoint")
    show.add_argument("file", type=Path)
    args = parser.parse_args(arguments)
    try:
        if args.command == "show":
            _show(args.file)
            return
        checkpoint = convert(
            args.source,
            annotations=args.classes,
            num_heads=args.num_heads,
            num_queries=args.num_queries,
        )
        write_checkpoint(checkpoint, args.destination)
        print_conversion(checkpoint, args.destination)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
