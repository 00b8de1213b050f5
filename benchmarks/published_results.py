"""Results measured for the published detectors, beside the published ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bundle.atomic import write_atomically

# AP on COCO val2017 in hundredths, and how far runs of a recipe differ: mmdetection 2.x, on its
# page of Deformable DETR.
PUBLISHED = {"base": (44.5, 0.3), "refine": (46.1, 0.3), "two_stage": (46.8, 0.2)}
FORMS = ("checkpoint", "fp32", "bf16", "int8")  # all but the first are bundles
EXACT_FORMS = ("checkpoint", "fp32")  # those that have to reach what is published


@dataclass(frozen=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
        numbers: COCO's twelve, 0..1; empty if it could not be measured.
        seconds: per image, including reading and preparing it.
        note: what ran, or why nothing could.
    """

    variant: str
    form: str
    numbers: Mapping[str, float]
    seconds: float
    note: str

    def difference(self) -> float:
        """AP above what is published, in hundredths; negative if below, NaN if not measured."""
        return 100 * self.numbers.get("AP", float("nan")) - PUBLISHED[self.variant][0]

    def is_within(self) -> bool:
        """Whether AP is within the tolerance of what is published."""
        return abs(self.difference()) <= PUBLISHED[self.variant][1]


def load_result(path: Path, conditions: Mapping[str, Any]) -> Result | None:
    """A result that was measured under these conditions before; None if there is none."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    return Result(**stored["result"]) if stored["conditions"] == conditions else None


def save_result(path: Path, result: Result, *, conditions: Mapping[str, Any]) -> None:
    """Keep a result together with what it was measured under."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"conditions": conditions, "result": asdict(result)}
    write_atomically(path, json.dumps(content, indent=2).encode())


def format_results(results: Sequence[Result], *, is_whole: bool) -> str:
    """A table in Markdown; without comparison if only a part of val2017 was evaluated."""
    lines = [
        "| variant | evaluated | AP | published | difference | tolerance | AP50 | s/image | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        published, tolerance = PUBLISHED[result.variant]
        compared = [f"{published}", "open", f"{tolerance}"]
        ap, ap50, seconds, note = "n/a", "n/a", "n/a", result.note
        if result.numbers:
            ap, ap50 = (f"{100 * result.numbers[name]:.2f}" for name in ("AP", "AP50"))
            seconds = f"{result.seconds:.2f}"
            if is_whole:
                compared[1] = f"{result.difference():+.2f}"
                note = f"{'within' if result.is_within() else '**OUTSIDE**'}; {note}"
        cells = [result.variant, result.form, ap, *compared, ap50, seconds, note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
