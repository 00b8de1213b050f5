"""python -m export CHECKPOINT --out BUNDLE: a checkpoint becomes a bundle, verified."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export.build import build_bundle
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
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        checkpoint = load_checkpoint(args.checkpoint)
        build_bundle(checkpoint, args.out, name=args.name, samples=args.samples)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.out}: try it with make serve BUNDLE={args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
