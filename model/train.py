"""Trains a detector; the loop is in `model.training.loop`.

    python -m model.train --config NAME|FILE.toml --set FIELD=VALUE --data DIR --out DIR
        --resume auto|PATH --init CHECKPOINT

The same command under torchrun trains on several devices:

    torchrun --nproc-per-node 2 -m model.train --config NAME ...

Exit status: 0 done, 1 refused or failed, 130, 143 or 129 stopped by SIGINT,
SIGTERM or SIGHUP after saving.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bundle.terminal import log_messages
from model.checkpoints.file_kind import require_checkpoint
from model.config import TrainConfig
from model.configs import CONFIGS
from model.data.data_set import add_val_fraction
from model.data.formats.source import Layout
from model.data.layouts import find_run_layout
from model.overrides import load_config
from model.training.trackers import require_tracker

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description="Train a detector.")
    parser.add_argument(
        "--config", default="demo", help=f"one of: {', '.join(CONFIGS)}; or a file NAME.toml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="settings to change, such as 'epochs=30 model.num_queries=100'",
    )
    parser.add_argument("--data", type=Path, help="directory of a data set, in any known format")
    add_val_fraction(parser)
    parser.add_argument("--out", type=Path, help="directory to write to (default: runs/CONFIG)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|PATH",
        help="continue a run in OUT if any (auto, the default), or a given last.training.pt",
    )
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="weights to start from")
    args = parser.parse_args(arguments)
    log_messages(_log_level())
    try:
        config, changes = load_config(args.config, args.set)
        if changes:
            log.info("%s: %s", args.config, ", ".join(changes))
        require_tracker(config.tracker)
        layout = find_run_layout(config, args.data, val_fraction=args.val_fraction)
        if args.init is not None and not _is_started(args.out or _default_out(config)):
            require_checkpoint(args.init)
    except ValueError as error:
        log.error("error: %s", error)
        return 1
    return _train(config, args, layout)


def _log_level() -> int:
    """Of torchrun's processes, the first one logs; the first of each node prints its errors."""
    if os.environ.get("RANK", "0") == "0":
        return logging.INFO
    return logging.ERROR if os.environ.get("LOCAL_RANK") == "0" else logging.CRITICAL


def _default_out(config: TrainConfig) -> Path:
    return Path("runs") / config.name


def _is_started(out_dir: Path) -> bool:
    """Whether a run was saved there, which would continue from its own weights."""
    return any(out_dir.glob("*.training.pt"))


def _train(config: TrainConfig, args: argparse.Namespace, layout: Layout | None) -> int:
    # PyTorch takes seconds to import, so mistyped arguments are reported first.
    from model.checkpoints.fetch import fetch_published
    from model.data.loading import open_data
    from model.data.workers import LoadingFailed
    from model.distributed import PeerFailed, is_main, joined, together
    from model.training.batch_memory import measure_batch
    from model.training.full_disk import describe_os_error, quiet_writer_threads
    from model.training.loop import train
    from model.training.memory import OUT_OF_MEMORY, MemoryRanOut, is_out_of_memory
    from model.training.run_directory import held

    quiet_writer_threads()
    out_dir = args.out or _default_out(config)
    open_run_data = partial(
        open_data, config, args.data, val_fraction=args.val_fraction, layout=layout
    )
    try:
        with joined():
            if not is_main():
                logging.getLogger().setLevel(logging.ERROR)
            data = together(open_run_data)
            with held(out_dir):
                return train(
                    config,
                    data,
                    out_dir=out_dir,
                    resume=args.resume,
                    init=args.init,
                    measure=measure_batch,
                    fetch=fetch_published,
                )
    except PeerFailed as error:  # its own message says why
        log.warning("error: %s", error)
        return 1
    except OSError as error:
        log.error("error: %s", describe_os_error(error))
        return 1
    except (ValueError, LoadingFailed, MemoryRanOut) as error:
        log.error("error: %s", error)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        log.error("error: %s", OUT_OF_MEMORY)
        return 1


if __name__ == "__main__":
    sys.exit(main())
