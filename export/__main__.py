"""python -m export CHECKPOINT --out BUNDLE: turns a checkpoint into a verified bundle."""

if __name__ == "__main__":  # before the imports that take long
    from bundle.ctrl_c import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from bundle.manifest import Precision
from bundle.terminal import log_messages, printable
from engines.base import EngineFailure
from export.graph.tensorrt_plan import SHAPE_FORMAT, find_planner
from export.stage import ended_by_ctrl_c
from model.checkpoints.file_kind import require_checkpoint
from model.data.data_set import add_val_fraction
from model.data.layouts import require_split


def main(argv: Sequence[str] | None = None) -> int:
    """Turn a checkpoint into a bundle: trace, write both graphs, verify, put in place."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.shapes and args.runtime != "tensorrt":
        parser.error("SHAPES= (--shapes) needs RUNTIME=tensorrt (--runtime)")
    log_messages()
    for ours in ("export", "model.data"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        with ended_by_ctrl_c():
            _export(args)
    except (ValueError, OSError, EngineFailure) as error:
        print(printable(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{args.out}: try it with make serve BUNDLE={args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="NAME.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument(
        "--name", help="name of the model; default: that of its data set, else of its file"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        nargs="*",
        help="sample images for the web page; default: four of the split val of --data; without "
        "a file, none",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="default: fp32, exact; fp16 is for GPUs, and refused if it changes detections; bf16 "
        "and int8 are refused if AP drops",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="directory of a data set: its split train calibrates int8; its split val is used to "
        "measure AP, to test fp16 and for samples; default: the demo's, for fp16 photographs",
    )
    add_val_fraction(parser)
    parser.add_argument(
        "--runtime",
        choices=("onnx", "tensorrt"),
        default="onnx",
        help="default: onnx, graphs for every engine; tensorrt adds a plan for this GPU",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=(),
        metavar="SHAPE",
        help=f"batches that the TensorRT plan takes: {SHAPE_FORMAT}; default: all images, alone "
        "and in batches",
    )
    return parser


def _export(args: argparse.Namespace) -> None:
    require_checkpoint(args.checkpoint)
    if args.data is not None:
        require_split(args.data, "val", val_fraction=args.val_fraction)
    # PyTorch takes seconds to import, so mistyped arguments are reported first.
    from export.bundle_writer import preprocess_of
    from export.recipe import export_bundle
    from model.checkpoints.checkpoint_file import load_checkpoint

    checkpoint = load_checkpoint(args.checkpoint)
    planner = None
    if args.runtime == "tensorrt":
        planner = find_planner(args.shapes, preprocess_of(checkpoint))
    export_bundle(
        checkpoint,
        args.out,
        precision=args.precision,
        data_dir=args.data,
        val_fraction=args.val_fraction,
        name=args.name,
        samples=args.samples,
        planner=planner,
    )


if __name__ == "__main__":
    sys.exit(main())
