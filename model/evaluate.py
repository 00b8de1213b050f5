"""Measures COCO AP: of a checkpoint here, of a bundle's engine in `export.evaluate`.

    python -m model.evaluate --checkpoint FILE [--data DIR --split val] [--out results.json]

As in the service, `bundle` prepares images and scales detections, so the AP printed here is the AP
of what is served. Without --data, a model with the demo's classes is evaluated on the demo's
validation set. `--results FILE` scores existing detections in COCO's results format.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bundle.atomic import make_place_for
from bundle.terminal import log_messages, printable
from model.arguments import at_least_one, height_and_width
from model.checkpoints.file_kind import require_checkpoint
from model.data.data_set import add_val_fraction
from model.data.layouts import require_split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by the evaluation of checkpoints and bundles."""
    parser.add_argument("--data", type=Path, help="directory of a data set; default: the demo's")
    add_val_fraction(parser)
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--out", type=Path, help="write the detections here, as COCO results JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page of results")
    parser.add_argument("--batch-size", type=at_least_one, default=1, help="default: 1, no padding")
    parser.add_argument(
        "--padding",
        type=height_and_width,
        default=(0, 0),
        metavar="HEIGHTxWIDTH",
        help="added to every batch at the bottom and right; default: 0x0",
    )
    parser.add_argument(
        "--save-thresholds",
        action="store_true",
        help="store the thresholds with the best F1 in the checkpoint or bundle, as its defaults",
    )
    parser.add_argument(
        "--limit", type=at_least_one, help="evaluate only this many images, the first ones"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the COCO metrics of a checkpoint or of existing detections."""
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path)
    source.add_argument("--results", type=Path, help="detections in COCO's results format")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.results is not None and args.save_thresholds:
        parser.error("--save-thresholds writes into a checkpoint; --results has none")
    if args.results is not None and args.out is not None:
        parser.error(
            "--out writes the detections of a model; with --results, they are in that file"
        )
    log_messages()
    show_progress()
    try:
        require_data(args)
        make_place(args)
        if args.results is None:
            require_checkpoint(args.checkpoint)
            _evaluate_checkpoint(args)
        else:
            from model.evaluation.report import score_results

            score_results(args)
    except (ValueError, OSError) as error:
        print(printable(error), file=sys.stderr)
        return 1
    return 0


def show_progress() -> None:
    """Log what is read, and where a page is."""
    for name in ("model.data", "model.evaluation"):
        logging.getLogger(name).setLevel(logging.INFO)


def require_data(args: argparse.Namespace) -> None:
    """Raise ValueError if a data set is named that does not exist."""
    if args.data is not None:
        require_split(args.data, args.split, val_fraction=args.val_fraction)


def make_place(args: argparse.Namespace) -> None:
    """Make the folders for what is written; ValueError or OSError if that is impossible there."""
    for path in (args.out, args.report):
        if path is not None:
            make_place_for(path)


def _evaluate_checkpoint(args: argparse.Namespace) -> None:
    # PyTorch takes seconds to import, so mistyped arguments are reported first.
    import torch

    from model.checkpoints.checkpoint_file import build_model, load_checkpoint, write_checkpoint
    from model.evaluation.report import evaluate_command, found_thresholds
    from model.network.inference import DetectionModel, torch_predictor
    from model.training.precision import set_tf32

    checkpoint = load_checkpoint(args.checkpoint)
    set_tf32(checkpoint.config.tf32)
    model = DetectionModel(build_model(checkpoint), checkpoint.config.preprocess)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    metrics = evaluate_command(
        torch_predictor(model),
        model.preprocess,
        model=args.checkpoint,
        classes=checkpoint.classes,
        training=checkpoint.provenance,
        facts={"variant": checkpoint.config.model.variant},
        args=args,
    )
    if args.save_thresholds:
        with_thresholds = replace(checkpoint, thresholds=found_thresholds(metrics))
        write_checkpoint(with_thresholds, args.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
