"""What the recipes beyond the paper gain: python -m benchmarks.bench_recipes --data DIR.

Trains `small`, or another configuration, as it is and with one setting changed, each for the same
CPU time of one process that also loads its images. `--config demo` draws its own images, so it has
no augmentation to change. The learning rate falls to zero within that time. AP is that of the
last weights, not of the best epoch.

The table is printed after every run. Finished runs are kept in OUT and not repeated, and an
interrupted one goes on, so a measurement may be made in parts.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, today
from bundle.terminal import log_messages
from model.data.loading import open_data
from model.evaluation.epoch_table import CSV_FILE, read_epochs
from model.overrides import load_config
from model.training.loop import train

PLAIN = "as it is"
RECIPES = {
    PLAIN: "",
    "contrastive denoising": "model.denoising_queries=60",
    "vertical flips": "augment.vertical_flip_probability=0.5",
    "hybrid matching": "model.one_to_many_queries=120",
    "mixed query selection": "model.query_content=learned",
    "look-forward-twice": "model.look_forward_twice=true",
    "focal loss in place of varifocal": "loss.classification=focal",
    "without moving average": "ema_decay=none",
    "one match for each object on the encoder": "loss.encoder_matches=1",
    "scale jitter": "augment.scale_jitter=0.8,1.25",
    "colour jitter": "augment.colour_jitter=0.5",
    "mosaic": "augment.mosaic_probability=0.5",
    "pasted objects": "augment.paste_probability=0.5",
    "scaled decoding": "augment.scaled_decoding=true",
}
COLUMNS = ("recipe", "seed", "epochs", "AP", "AP50")
Row = dict[str, str]


def recipes_for(config_name: str) -> list[str]:
    """The recipes that this configuration can be trained with."""
    is_augmented = load_config(config_name)[0].augment is not None
    return [name for name in RECIPES if is_augmented or not RECIPES[name].startswith("augment.")]


def measure(recipe: str, seed: int, *, args: argparse.Namespace) -> Row:
    """Train one run, or what is left of it, and return its row."""
    fixed = f"minutes={args.minutes} num_workers=0 num_threads=1 seed={seed}"
    config, _ = load_config(args.config, [args.set, RECIPES[recipe], fixed])
    out_dir = args.out / f"{recipe} {seed}".replace(",", "").replace(" ", "-")
    data = open_data(config, args.data)
    if train(config, data, out_dir=out_dir, clock=time.process_time) != 0:
        sys.exit("stopped; the same command continues from here")
    last = read_epochs(out_dir / CSV_FILE)[-1]
    values = (recipe, seed, f"{last['epoch']:.0f}", f"{last['AP']:.4f}", f"{last['AP50']:.4f}")
    return dict(zip(COLUMNS, map(str, values), strict=True))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line for each recipe that has been measured: means over its seeds.

    The difference is that to the plain runs of the same seeds.
    """
    runs: dict[str, dict[str, Mapping[str, str]]] = defaultdict(dict)
    for row in rows:
        runs[row["recipe"]][row["seed"]] = row
    lines = ["| recipe | setting | seeds | epochs | AP | AP50 | AP, difference by seed |"]
    lines.append("|---|---|---|---|---|---|---|")
    for recipe in [name for name in RECIPES if name in runs]:
        found = runs[recipe]
        epochs, ap, ap50 = (
            statistics.mean(float(row[column]) for row in found.values()) for column in COLUMNS[2:]
        )
        differences = ", ".join(
            f"{float(row['AP']) - float(runs[PLAIN][seed]['AP']):+.3f}"
            for seed, row in found.items()
            if recipe != PLAIN and seed in runs[PLAIN]
        )
        setting = f"`{RECIPES[recipe]}`" if RECIPES[recipe] else ""
        lines.append(
            f"| {recipe} | {setting} | {len(found)} | {epochs:.0f} | {ap:.3f} | {ap50:.3f} "
            f"| {differences} |"
        )
    return "\n".join(lines)


def _finished(path: Path, settings: str) -> list[Row]:
    """The rows of earlier calls; the folder holds runs of one kind."""
    note = path.with_name("settings.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    if note.exists() and note.read_text() != settings:
        sys.exit(f"{path.parent} holds runs with {note.read_text()}: choose another OUT (--out)")
    note.write_text(settings)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: Row) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Measure what is missing, all recipes with one seed before the next, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_recipes", description=__doc__)
    parser.add_argument("--config", default="small", help="configuration to change")
    parser.add_argument("--data", type=Path, help="directory of a data set; not for demo")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", default="", help="settings of all runs: 'FIELD=VALUE ...'")
    args = parser.parse_args()
    log_messages()
    recipes = recipes_for(args.config)
    path = args.out / "results.csv"
    data = args.data.name if args.data else "digits"
    settings = f"{args.config}, data {data}, CPU minutes of a run {args.minutes:g}; {args.set}"
    rows = _finished(path, settings)
    done = {(row["recipe"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for recipe in [name for name in recipes if (name, str(seed)) not in done]:
            rows.append(measure(recipe, seed, args=args))
            _append(path, rows[-1])
            machine = f"{describe_machine(['torch'])}, load {os.getloadavg()[0]:.1f}"
            print(f"{today()}: {machine}; {settings}\n\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
