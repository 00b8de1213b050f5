"""python -m export CHECKPOINT --out BUNDLE: a checkpoint becomes a bundle, verified."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export.build import build_bundle
from export.reduce import build_reduced_bundle
from model.checkpoint import load_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Turn a checkpoint into a bundle: trace, write both graphs, verify, put in place."""
    parser = argparse.ArgumentParser(prog="python -m export", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="NAME.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--name", help="of the model; default: the name of its configuration")
    parser.add_argument(
        "--samples", type=Path, nargs="*", default=(), help="images that the web page offers"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="default: fp32, exact; the others are refused where they cost AP",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="data set in COCO's format: int8 is calibrated on its split train, AP is measured on "
        "its split val; default: the demo's",
    )
    args = parser.parse_args(argv)
    if args.precision == "fp32" and args.data is not None:
        parser.error("--data is of use with --precision bf16 or int8 only; fp32 is exact")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        checkpoint = load_checkpoint(args.checkpoint)
        options = {"name": args.name, "samples": args.samples}
        if args.precision == "fp32":
            build_bundle(checkpoint, args.out, **options)
        else:
            build_reduced_bundle(
                checkpoint, args.out, args.precision, data_dir=args.data, **options
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{args.out}: try it with make serve BUNDLE={args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
