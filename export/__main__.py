"""python -m export CHECKPOINT --out BUNDLE: turns a checkpoint into a verified bundle."""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, get_args

from bundle.manifest import Precision
from bundle.model_name import NAME_RULE, is_model_name
from bundle.terminal import log_messages, printable
from engines.base import EngineFailure
from export.graph.tensorrt_plan import SHAPE_FORMAT, find_planner
from export.stage import ended_by_ctrl_c, stage
from model.checkpoints.file_kind import require_checkpoint
from model.data.data_set import add_val_fraction
from model.data.layouts import require_split

if TYPE_CHECKING:
    from model.checkpoints.checkpoint_file import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Turn a checkpoint into a bundle: trace, write both graphs, verify, put in place."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.shapes and args.runtime != "tensorrt":
        parser.error("SHAPES= (--shapes) needs RUNTIME=tensorrt (--runtime)")
    log_messages()
    for ours in ("export", "model.data"):
        logging.getLogger(ours).setLevel(logging.INFO)
    written: list[Path] = []
    try:
        with ended_by_ctrl_c():
            _export(args, written)
    except (ValueError, OSError, EngineFailure) as error:
        print(printable(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        done = ", ".join(map(str, written)) or "nothing"
        print(f"\nstopped; {done} {'were' if len(written) > 1 else 'was'} written", file=sys.stderr)
        return 130
    for out in written:
        print(f"{out}: try it with make serve BUNDLE={quote(str(out))}")
    return 0 if len(written) == len(args.precision) else 1


def _name(text: str) -> str:
    if not is_model_name(text):
        raise argparse.ArgumentTypeError(f"{NAME_RULE}; got {text!r}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="NAME.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument(
        "--name",
        type=_name,
        help="name of the model; default: that of its data set, else of its file",
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
        type=_precisions,
        default="fp32",
        help="default: fp32, exact; fp16 is for GPUs, and refused if it changes detections; bf16, "
        "int8 and fp8, which is for TensorRT, are refused if AP drops; several, as in fp32,int8, "
        "are written to OUT-PRECISION from one trace and compared",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="directory of a data set: its split train calibrates int8 and fp8; its split val is "
        "used to measure AP, to test fp16 and for samples; default: the demo's, for fp16 "
        "photographs",
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


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {known})")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected every precision once, got {text}")
    return names


def _export(args: argparse.Namespace, written: list[Path]) -> None:
    """Export, and add every bundle that is in place to `written`."""
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
    options = {
        "data_dir": args.data,
        "val_fraction": args.val_fraction,
        "name": args.name,
        "samples": args.samples,
        "planner": planner,
    }
    if len(args.precision) > 1:
        _export_several(checkpoint, args, written, options)
        return
    export_bundle(checkpoint, args.out, precision=args.precision[0], **options)
    written.append(args.out)


def _export_several(
    checkpoint: "Checkpoint", args: argparse.Namespace, written: list[Path], options: dict[str, Any]
) -> None:
    """Export one precision after the other, and end with a table of them."""
    from export.comparison import measure_speeds, table
    from export.several import export_bundles

    outcomes = []
    for outcome in export_bundles(checkpoint, args.out, precisions=args.precision, **options):
        outcomes.append(outcome)
        if outcome.bundle is not None:
            written.append(outcome.bundle.directory)
    with stage("timing the bundles in turn"):
        speeds = measure_speeds(outcomes)
    print(table(outcomes, speeds))


if __name__ == "__main__":
    sys.exit(main())
