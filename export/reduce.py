"""A bundle in bf16 or int8, if that costs next to no AP."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import onnx_ir as ir

from bundle.layout import CACHE_FOLDER, MANIFEST_FILE, REPORT_FILE, STANDARD_FORM
from bundle.manifest import ClassInfo, Manifest
from bundle.staging import require_replaceable, staged
from export.build import build_bundle, plan_bundle, stage
from export.graph.calibration import NUM_IMAGES, measure_ranges
from export.graph.int8 import plan_int8, write_int8
from export.graph.tensorrt_plan import Planner
from export.graph.trace import Graphs, write_graphs
from export.half import add_half_graph
from export.judge.ap import (
    compare,
    measure,
    require_computable,
    require_judgeable,
    require_kept,
)
from model.checkpoints.checkpoint_file import Checkpoint
from model.data import digits
from model.data.evaluation_data import EvaluationData, open_evaluation_data, require_classes

Precision = Literal["bf16", "int8"]


class Data(NamedTuple):
    """What int8 is calibrated on, and what AP is measured on."""

    train: EvaluationData
    val: EvaluationData


def build_reduced_bundle(
    checkpoint: Checkpoint,
    out: Path,
    precision: Precision,
    *,
    data_dir: Path | None = None,
    name: str | None = None,
    samples: Sequence[Path] = (),
    planner: Planner | None = None,
) -> Manifest:
    """Export as `build_bundle` does, reduce the precision, and refuse if AP drops too far.

    In bf16 the graphs stay as they are: the engine computes them so. In int8 they are changed.

    Args:
        data_dir: data set in COCO's format with splits train and val; the demo's if None.
        name, samples: see `build_bundle`.
        planner: for a TensorRT plan, whose AP is then measured.

    Raises:
        ValueError: as `build_bundle`, and where there are no images, AP drops by more than
            `MAX_AP_DROP`, or cannot be judged here.
        OSError: as `build_bundle`.
        In all cases `out` is as it was before.
    """
    require_replaceable(out)
    data = open_data(data_dir, checkpoint.classes)
    with (
        staged(out) as directory,
        TemporaryDirectory(prefix=".fp32.", dir=directory.parent) as exact,
    ):
        build_bundle(checkpoint, Path(exact), name=name, samples=samples)
        return reduce_bundle(Path(exact), directory, precision, data, planner)


def reduce_bundle(
    exact: Path,
    directory: Path,
    precision: Precision,
    data: Data,
    planner: Planner | None = None,
) -> Manifest:
    """Write the float32 bundle `exact` to an empty directory in another precision.

    Raises:
        ValueError: AP drops by more than `MAX_AP_DROP`, or cannot be judged here.
    """
    manifest = write_reduced(exact, directory, precision, data.train)
    if planner is not None:
        # What is not int8 is float16 then.
        manifest = add_half_graph(directory, manifest, "bf16" if precision == "bf16" else "fp16")
        manifest = plan_bundle(directory, manifest, planner).save(directory)
    require_computable(directory)
    before = measure(exact, data.val)
    require_judgeable(before)
    after = measure(directory, data.val)
    require_kept(before, after, precision)
    report = json.loads((directory / REPORT_FILE).read_text())
    report["reduced"] = compare(before, after, precision, len(data.val))
    (directory / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(directory / CACHE_FOLDER, ignore_errors=True)
    return manifest.model_copy(update={"metrics": after.metrics.defined}).save(directory)


def open_data(data_dir: Path | None, classes: Sequence[ClassInfo]) -> Data:
    """The splits train and val in a directory, or without one the demo's if these are its classes.

    Raises:
        ValueError: neither, other classes, or a fault of the data, such as a split without images.
    """
    val = open_evaluation_data(data_dir, "val", classes)
    train = (
        digits.DigitsDataset("train", num_images=NUM_IMAGES)
        if data_dir is None
        else open_evaluation_data(data_dir, "train", classes)
    )
    for dataset in (train, val):
        require_classes(classes, dataset.classes)
    return Data(train, val)


def write_reduced(
    exact: Path, directory: Path, precision: Precision, images: EvaluationData
) -> Manifest:
    """What `reduce_bundle` writes, unjudged; int8 is calibrated on `images`."""
    manifest = Manifest.load(exact)
    left_out = shutil.ignore_patterns(MANIFEST_FILE, CACHE_FOLDER)
    shutil.copytree(exact, directory, dirs_exist_ok=True, ignore=left_out)
    if precision == "int8":
        graphs = _read_graphs(exact, manifest)
        plan = plan_int8(graphs.plugin.graph)
        with stage(f"calibrating on {min(NUM_IMAGES, len(images))} images"):
            ranges = measure_ranges(
                exact / manifest.graphs[STANDARD_FORM],
                list(plan.activations),
                images,
                manifest.preprocess,
                batch_size=manifest.max_batch_size,
            )
        write_int8(graphs, plan, ranges)
        write_graphs(graphs, directory)
    return manifest.model_copy(update={"precision": precision}).save(directory)


def _read_graphs(directory: Path, manifest: Manifest) -> Graphs:
    """Both forms of a bundle's graph; weights that they share are the same object."""
    graphs = Graphs(**{form: ir.load(directory / file) for form, file in manifest.graphs.items()})
    kept: dict[tuple[int | None, int | None], ir.ExternalTensor] = {}
    for model in graphs:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                place = value.const_value.offset, value.const_value.length
                value.const_value = kept.setdefault(place, value.const_value)
    return graphs
