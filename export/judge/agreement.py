"""Whether half precision gives the detections of float32."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.detect import Predict, make_batch
from bundle.layout import STANDARD_FORM
from bundle.manifest import Bundle
from bundle.postprocess import ImageOutput
from bundle.preprocess import Preprocess, Uint8Array
from engines.base import Engine
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.guard import guard
from export.graph.emulation import Emulation, Magnitude
from export.judge.refusal import Refused

SAME_BOX_PX = 0.5
MIN_AGREEMENT = 0.99
LARGEST = {"fp16": 6e4, "bf16": 3e38}  # a little less than the type holds
NUM_LISTED = 10  # of the largest numbers, in the report

log = logging.getLogger(__name__)


class Agreement(NamedTuple):
    """How far detections in half precision are from those in float32.

    share: of the float32 detections, those with a counterpart of the same class within SAME_BOX_PX
    in every coordinate; detections displaced from the top-N by an equal score are not counted.
    score_error: the largest difference between scores of equal rank. box_error_px: the largest
    difference of a coordinate among detections that agree. num_at_cut: how many were displaced.
    """

    share: float
    score_error: float
    box_error_px: float
    detections: int
    num_at_cut: int


class _ImageAgreement(NamedTuple):
    distance_px: npt.NDArray[np.float64]  # of each counted detection to the nearest of its class
    score_error: float
    num_at_cut: int


def judge_rounding(
    exact: Bundle, precision: str, *, images: Sequence[Uint8Array]
) -> dict[str, Any]:
    """Run images through a float32 bundle, with and without rounding to `precision`, on the CPU.

    Images are (H, W, 3) uint8 RGB of any size. Returns the entry for the report.

    Raises:
        Refused: a number is too large for the type, or detections change.
        ValueError: a weight is too large.
    """
    with closing(_open(exact)) as engine, TemporaryDirectory() as scratch:
        emulation = Emulation(exact.graph(STANDARD_FORM), precision, scratch=Path(scratch))
        found = compare(
            engine.run, emulation.run, images=images, preprocess=exact.manifest.preprocess
        )
    require_held(emulation.magnitudes, precision)
    largest = sorted(emulation.magnitudes, reverse=True)[:NUM_LISTED]
    log.info("  numbers reach %.0f in %s (%s)", *(largest[0][i] for i in (0, 2, 1)))
    _require_agreement(found, precision)
    return {**found._asdict(), "largest": [magnitude._asdict() for magnitude in largest]}


def judge_engine(exact: Bundle, engine: Engine, *, images: Sequence[Uint8Array]) -> dict[str, Any]:
    """Run images through a float32 bundle on the CPU and through another engine.

    Images are (H, W, 3) uint8 RGB of any size. Returns the entry for the report.

    Raises:
        Refused: detections change.
    """
    with closing(_open(exact)) as expected:
        found = compare(
            expected.run, engine.run, images=images, preprocess=exact.manifest.preprocess
        )
    _require_agreement(found, "the plan")
    return found._asdict()


def _open(exact: Bundle) -> Engine:
    return guard(OnnxRuntimeEngine(exact), exact.manifest)


def require_held(magnitudes: Iterable[Magnitude], precision: str) -> None:
    """Raise Refused if a number of a graph is too large for "fp16" or "bf16", or NaN."""
    for largest, operator, place in magnitudes:
        if not largest <= LARGEST[precision]:
            raise Refused(
                f"numbers reach {largest:.3g} in {place} ({operator}), more than {precision} holds"
            )


def compare(
    exact: Predict, other: Predict, *, images: Sequence[Uint8Array], preprocess: Preprocess
) -> Agreement:
    """Run every image (H, W, 3) uint8 RGB alone through both and compare the detections."""
    parts = []
    for image in images:
        batch = make_batch([image], preprocess)
        (expected,), (found,) = (
            predict(batch.images, batch.padding_mask).rows() for predict in (exact, other)
        )
        parts.append(_compare_image(expected, found, resized=batch.geometries[0].resized))
    distance_px = np.concatenate([part.distance_px for part in parts])
    near = distance_px[distance_px < SAME_BOX_PX]
    num_at_cut = sum(part.num_at_cut for part in parts)
    return Agreement(
        share=len(near) / len(distance_px),
        score_error=max(part.score_error for part in parts),
        box_error_px=float(near.max(initial=0)),
        detections=len(distance_px) + num_at_cut,
        num_at_cut=num_at_cut,
    )


def _compare_image(
    expected: ImageOutput, found: ImageOutput, *, resized: tuple[int, int]
) -> _ImageAgreement:
    height, width = resized
    apart_px = np.abs(expected.boxes[:, None] - found.boxes) * (width, height, width, height)
    is_same_class = expected.labels[:, None] == found.labels
    distance_px = np.where(is_same_class, apart_px.max(-1), np.inf).min(1)  # (N,)
    score_error = float(np.abs(expected.scores - found.scores).max())
    is_at_cut = expected.scores <= expected.scores[-1] + 2 * score_error
    is_displaced = is_at_cut & (distance_px >= SAME_BOX_PX)
    is_displaced &= 2 * is_displaced.sum() <= len(is_displaced)  # not if most are
    return _ImageAgreement(distance_px[~is_displaced], score_error, int(is_displaced.sum()))


def _require_agreement(found: Agreement, subject: str) -> None:
    log.info(
        "  of %d detections, %.1f%% are the same to within %s px, scores to within %.1e",
        *(found.detections, 100 * found.share, SAME_BOX_PX, found.score_error),
    )
    if found.share < MIN_AGREEMENT:
        raise Refused(
            f"in {subject}, {1 - found.share:.1%} of the detections change, where "
            f"{1 - MIN_AGREEMENT:.0%} is allowed"
        )
