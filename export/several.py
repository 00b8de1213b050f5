"""Bundles of several precisions from one trace, each judged as if it were exported alone."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bundle.manifest import Bundle, Precision
from bundle.staging import require_replaceable, staged
from bundle.terminal import printable
from engines.base import EngineFailure
from export.bundle_writer import read_samples
from export.graph.tensorrt_plan import Planner
from export.judge import ap
from export.precisions import RECIPES, Materials, require_possible
from export.recipe import make_bundle, traced
from model.checkpoints.checkpoint_file import Checkpoint

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a precision.

    Attributes:
        bundle: None if it was refused, or could not be made or judged here.
        ap: on the split val as measured in this export; None if it was not.
        reason: why there is no bundle.
    """

    precision: Precision
    bundle: Bundle | None
    ap: float | None = None
    reason: str = ""


def directory_of(out: Path, precision: Precision) -> Path:
    """Where the bundle of one of several precisions goes: OUT-PRECISION."""
    return out.with_name(f"{out.name}-{precision}")


def export_bundles(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precisions: Sequence[Precision],
    data_dir: Path | None = None,
    val_fraction: float | None = None,
    name: str | None = None,
    samples: Sequence[Path] | None = None,
    planner: Planner | None = None,
) -> Iterator[Outcome]:
    """Trace once, and export one precision after the other to OUT-PRECISION.

    The bundle of a precision is in place when its outcome is yielded. One that fails is logged and
    leaves the others alone. AP in float32 is measured once, if any of them has a split val.

    Args:
        See `export.recipe.export_bundle`.

    Raises:
        ValueError, OSError: as `export_bundle`, for what concerns all precisions.
    """
    for precision in precisions:
        require_replaceable(directory_of(out, precision))
        require_possible(precision, planner)
    data = {
        precision: RECIPES[precision].open_data(
            data_dir, checkpoint.classes, val_fraction=val_fraction
        )
        for precision in precisions
    }
    val = next((one.val for one in data.values() if one.val is not None), None)
    sample_files = read_samples(checkpoint, samples, data=val if data_dir is not None else None)
    with traced(checkpoint, beside=out, name=name, samples=sample_files) as (exact, report):
        exact_ap = None if val is None else ap.measure(exact.exact, val)
        for precision in precisions:
            log.info("%s:", precision)
            materials = exact._replace(data=data[precision], planner=planner, exact_ap=exact_ap)
            yield _export(materials, out, precision=precision, report=report)


def _export(
    materials: Materials, out: Path, *, precision: Precision, report: Mapping[str, object]
) -> Outcome:
    directory = directory_of(out, precision)
    try:
        with staged(directory) as staging:
            made = make_bundle(materials, staging, precision=precision, report=report)
    except (ValueError, OSError, EngineFailure) as error:
        log.error("%s: %s", precision, printable(error))
        return Outcome(precision, None, reason=str(error.__cause__ or error))
    return Outcome(precision, Bundle(directory, made.manifest), _measured_ap(made, materials))


def _measured_ap(made: Bundle, materials: Materials) -> float | None:
    """AP as a judge measured it; for fp16 none has, and its manifest has the checkpoint's."""
    if materials.exact_ap is None or made.manifest.precision == "fp16":
        return None
    if made.manifest.precision == "fp32":
        return materials.exact_ap.metrics.numbers["AP"]
    return made.manifest.metrics["AP"]
