"""python -m service.selftest: check the engine that serves a bundle against its known answers.

The engine is the one that the service would open, from the settings in the environment. Exit
status: 0 if every answer is right, 1 if one is not, 2 if nothing could be tried.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pydantic import ValidationError

from bundle.manifest import Bundle
from bundle.terminal import printable
from engines.base import EngineFailure
from engines.self_check import self_check
from service.settings import Settings
from service.settings_faults import describe_settings_faults
from service.startup import open_served


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m service.selftest",
        description="Run a bundle's known answers in the engine that serves it, as every start of "
        "the service does, and print how far it is off in each.",
    )
    parser.add_argument(
        "--bundle", type=Path, help="default: DETR_BUNDLE, else the demo in bundles/demo"
    )
    args = parser.parse_args(argv)
    try:
        return _try(Settings(**({"bundle": args.bundle} if args.bundle else {})))
    except ValidationError as error:
        fault = describe_settings_faults(error)
    except (ValueError, OSError, EngineFailure) as error:
        fault = str(error)
    print(printable(f"error: {fault}"), file=sys.stderr)
    return 2


def _try(settings: Settings) -> int:
    bundle = Bundle.load(settings.bundle)
    with closing(open_served(bundle, settings)) as engine:
        print(f"{settings.bundle}: " + ", ".join(map(str, engine.info)))
        limit = settings.limit_batch(engine.max_batch_size)
        outcomes, _ = self_check(engine, bundle, max_batch_size=limit, at_full_size=True)
    for outcome in outcomes:
        print(outcome.describe())
        if not outcome.has_passed:
            print(f"  {outcome.worst}")
    return 0 if all(outcome.has_passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
