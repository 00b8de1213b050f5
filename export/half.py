"""A bundle that TensorRT runs in half precision: one more graph, and what rounding does to it.

The other graphs stay float32, for engines on a CPU.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from bundle.detect import Predict, make_batch
from bundle.layout import (
    GRAPH_FILES,
    HALF_FORM,
    PLUGIN_FORM,
    REPORT_FILE,
    STANDARD_FORM,
    WEIGHTS_FILES,
)
from bundle.manifest import Manifest
from bundle.preprocess import Preprocess, decode_image
from bundle.staging import require_replaceable, staged
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from export.build import build_bundle, plan_bundle, stage
from export.graph.emulation import Emulation, Magnitude
from export.graph.half_precision import write_half
from export.graph.tensorrt_plan import Planner, open_plan
from export.graph.trace import EXTERNAL_FROM_BYTES
from export.judge.verify import photographs
from model.checkpoints.checkpoint_file import Checkpoint
from model.data.evaluation_data import open_evaluation_data

NUM_IMAGES = 16  # of a data set
SAME_BOX_PX = 0.5
MIN_AGREEMENT = 0.99
LARGEST = {"fp16": 6e4, "bf16": 3e38}  # a little less than the type holds
NUM_LISTED = 10  # of the largest numbers, in the report

Image = npt.NDArray[np.uint8]

log = logging.getLogger(__name__)


class Agreement(NamedTuple):
    """How far detections in half precision are from those in float32.

    share: of the detections in float32, those with one of the same class within SAME_BOX_PX in
    every coordinate; those apart that another one of equal score pushed off the end of the list.
    score_error: the largest difference of scores of equal rank. box_error_px: the largest
    difference of a coordinate among those that agree. num_at_cut: those pushed off.
    """

    share: float
    score_error: float
    box_error_px: float
    detections: int
    num_at_cut: int


def build_half_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    data_dir: Path | None = None,
    name: str | None = None,
    samples: Sequence[Path] = (),
    planner: Planner | None = None,
) -> Manifest:
    """Export as `build_bundle` does, with a graph in float16 for TensorRT beside.

    Args:
        data_dir: data set in COCO's format, on whose split val rounding is tried; samples and
            photographs if None.
        name, samples: see `build_bundle`.
        planner: for a plan of that graph, too.

    Raises:
        ValueError: as `build_bundle`, and where a number is too large for float16 or detections
            become others.
        OSError: as `build_bundle`.
        In all cases `out` is as it was before.
    """
    require_replaceable(out)
    data = data_dir and open_evaluation_data(data_dir, "val", checkpoint.classes)
    with staged(out) as directory:
        manifest = build_bundle(checkpoint, directory, name=name, samples=samples)
        if data:
            count = min(NUM_IMAGES, len(data))
            chosen = [number * len(data) // count for number in range(count)]
            images = [data.read_image(index) for index in chosen]
        else:
            files = [directory / sample for sample in manifest.samples]
            photos = photographs()
            mirrored = [np.ascontiguousarray(photo[:, ::-1]) for photo in photos]
            images = [*(decode_image(file.read_bytes()) for file in files), *photos, *mirrored]
        return halve_bundle(directory, manifest, images, planner)


def halve_bundle(
    directory: Path, manifest: Manifest, images: Sequence[Image], planner: Planner | None = None
) -> Manifest:
    """Add a float16 graph to a float32 bundle, and a plan of it, when they have been tried.

    Raises:
        ValueError: a number is too large for float16, or detections become others.
    """
    precision = "fp16"
    with stage(f"running {len(images)} images in {precision}, emulated"):
        report = {"emulated": try_rounding(directory, manifest, precision, images)}
    manifest = add_half_graph(directory, manifest, precision)
    if planner is not None:
        manifest = plan_bundle(directory, manifest, planner)
        with stage(f"running {len(images)} images in {precision} in TensorRT"):
            report["tensorrt"] = _try_plan(directory, manifest, images, planner)
    manifest = manifest.model_copy(update={"precision": precision})
    path = directory / REPORT_FILE
    content = json.loads(path.read_text()) | {"half": report}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return manifest.save(directory)


def add_half_graph(directory: Path, manifest: Manifest, precision: str) -> Manifest:
    """Write the plugin graph in half precision, with weights of its own; the manifest of both.

    Raises:
        ValueError: a weight is too large, or the graph is not valid ONNX.
    """
    model = ir.load(directory / manifest.graphs[PLUGIN_FORM])
    write_half(model, precision)
    path = directory / GRAPH_FILES[HALF_FORM]
    ir.save(
        *(model, path),
        external_data=WEIGHTS_FILES[HALF_FORM],
        size_threshold_bytes=EXTERNAL_FROM_BYTES,
        alignment=4096,
    )
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ValueError(f"the graph in {precision} is not valid ONNX: {error}") from error
    graphs = manifest.graphs | {HALF_FORM: GRAPH_FILES[HALF_FORM]}
    return manifest.model_copy(update={"graphs": graphs})


def try_rounding(
    directory: Path, manifest: Manifest, precision: str, images: Sequence[Image]
) -> dict[str, Any]:
    """Run images through a float32 bundle, with and without rounding to `precision`, on the CPU.

    Returns what the report says of it.

    Raises:
        ValueError: a number is too large for the type, or detections become others.
    """
    exact = OnnxRuntimeEngine(directory, manifest)
    try:
        with TemporaryDirectory() as scratch:
            graph = directory / manifest.graphs[STANDARD_FORM]
            emulation = Emulation(graph, precision, Path(scratch))
            found = compare(exact.run, emulation.run, images, manifest.preprocess)
    finally:
        exact.close()
    _require_finite(emulation.magnitudes, precision)
    largest = sorted(emulation.magnitudes, reverse=True)[:NUM_LISTED]
    log.info("  numbers reach %.0f in %s (%s)", *(largest[0][i] for i in (0, 2, 1)))
    _require_agreement(found, precision)
    return {**found._asdict(), "largest": [magnitude._asdict() for magnitude in largest]}


def compare(
    exact: Predict, other: Predict, images: Sequence[Image], preprocess: Preprocess
) -> Agreement:
    """Run every image alone in both and compare what is found."""
    distances, score_errors, num_at_cut = [], [], 0
    for image in images:
        batch = make_batch([image], preprocess)
        (expected,), (found,) = (
            predict(batch.images, batch.padding_mask).rows() for predict in (exact, other)
        )
        height, width = batch.geometries[0].resized
        apart_px = np.abs(expected.boxes[:, None] - found.boxes) * (width, height, width, height)
        is_same_class = expected.labels[:, None] == found.labels
        distance_px = np.where(is_same_class, apart_px.max(-1), np.inf).min(1)  # (N,)
        score_error = np.abs(expected.scores - found.scores).max()
        is_at_cut = expected.scores <= expected.scores[-1] + 2 * score_error
        is_pushed_off = is_at_cut & (distance_px >= SAME_BOX_PX)
        is_pushed_off &= 2 * is_pushed_off.sum() <= len(is_pushed_off)  # more are no exceptions
        num_at_cut += int(is_pushed_off.sum())
        distances.append(distance_px[~is_pushed_off])
        score_errors.append(score_error)
    distance_px = np.concatenate(distances)
    near = distance_px[distance_px < SAME_BOX_PX]
    return Agreement(
        share=len(near) / len(distance_px),
        score_error=float(max(score_errors)),
        box_error_px=float(near.max(initial=0)),
        detections=len(distance_px) + num_at_cut,
        num_at_cut=num_at_cut,
    )


def _try_plan(
    directory: Path, manifest: Manifest, images: Sequence[Image], planner: Planner
) -> dict[str, Any]:
    with ExitStack() as stack:
        exact = OnnxRuntimeEngine(directory, manifest)
        stack.callback(exact.close)
        plan = open_plan(directory, manifest, planner)
        stack.callback(plan.close)
        found = compare(exact.run, plan.run, images, manifest.preprocess)
    _require_agreement(found, "the plan")
    return found._asdict()


def _require_finite(magnitudes: Iterable[Magnitude], precision: str) -> None:
    for largest, operator, place in magnitudes:
        if not largest <= LARGEST[precision]:
            raise ValueError(
                f"numbers reach {largest:.3g} in {place} ({operator}), more than {precision} "
                "holds; export with PRECISION=bf16 or fp32"
            )


def _require_agreement(found: Agreement, subject: str) -> None:
    log.info(
        "  of %d detections, %.1f%% are the same within %s px, scores within %.1e",
        *(found.detections, 100 * found.share, SAME_BOX_PX, found.score_error),
    )
    if found.share < MIN_AGREEMENT:
        raise ValueError(
            f"in {subject} {1 - found.share:.1%} of the detections become others, where "
            f"{1 - MIN_AGREEMENT:.0%} is allowed; export with PRECISION=fp32"
        )
