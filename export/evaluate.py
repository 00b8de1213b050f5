"""python -m export.evaluate --bundle DIR: COCO's numbers for a bundle, as it is served."""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

from bundle.manifest import Bundle
from bundle.terminal import log_messages, printable
from engines.base import EngineFailure
from engines.decoders import DecoderName, open_decoder
from engines.load import open_engine
from engines.self_check import require_known_answers
from model.evaluate import add_arguments, make_place, require_data, show_progress


def main(argv: Sequence[str] | None = None) -> int:
    """Print the COCO metrics of a bundle, run by the engine that serves it."""
    parser = argparse.ArgumentParser(prog="python -m export.evaluate", description=main.__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="directory of the bundle")
    parser.add_argument(
        "--decoder",
        choices=get_args(DecoderName),
        default="cpu",
        help="decodes and resizes the images: cpu (default); gpu, as DETR_DECODER=gpu does; "
        "nvimagecodec-on-cpu, the same where there is no GPU",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    log_messages()
    show_progress()
    try:
        require_data(args)
        make_place(args)
        bundle = Bundle.load(args.bundle)
        decode = None if args.decoder == "cpu" else open_decoder(args.decoder)
        # PyTorch takes seconds to import, so mistyped arguments are reported first.
        from model.evaluation.report import evaluate_command, found_thresholds

        with closing(open_engine(bundle)) as engine:
            require_known_answers(engine, bundle)
            manifest = bundle.manifest
            metrics = evaluate_command(
                engine.run,
                manifest.preprocess,
                model=args.bundle,
                classes=manifest.classes,
                training=manifest.provenance.get("weights") or {},
                facts={
                    "variant": manifest.variant,
                    "precision": engine.info.precision,
                    "engine": engine.info.runtime,
                    "decoder": args.decoder,
                },
                args=args,
                decode=decode,
            )
        if args.save_thresholds:
            bundle.with_manifest(thresholds=found_thresholds(metrics)).save()
    except (ValueError, OSError, EngineFailure) as error:
        print(printable(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
