"""What differs between the precisions of a bundle: a row of `RECIPES` for each.

A row has the data it needs, what writes its graphs, what judges it, and what to export instead if
the judge refuses it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from bundle.manifest import Bundle, ClassInfo, Precision
from bundle.preprocess import Uint8Array
from export.bundle_writer import sample_images
from export.graph import calibration
from export.graph.half_precision import add_half_graph
from export.graph.quantisation import FP8, INT8, EightBits, quantise
from export.graph.tensorrt_plan import Planner, open_plan
from export.graph.trace import Graphs, write_graphs
from export.judge import agreement, ap
from export.judge.verify import batches_allowed, photographs, verify
from export.stage import stage
from model.data import digits
from model.data.evaluation_data import EvaluationData, open_evaluation_data, require_classes
from model.network.inference import DetectionModel

NUM_AGREEMENT_IMAGES = 16  # of a data set
FP8_CAPABILITY = (8, 9)  # Ada; also Hopper and Blackwell


class Data(NamedTuple):
    """Data sets, opened before any slow step; None if a recipe does not need one."""

    train: EvaluationData | None = None  # int8 and fp8 are calibrated on it
    val: EvaluationData | None = None  # a precision is judged on it


class Materials(NamedTuple):
    """What a bundle is made from and judged by."""

    exact: Bundle  # in float32, verified
    data: Data = Data()
    planner: Planner | None = None  # for a TensorRT plan
    model: DetectionModel | None = None  # traced as `exact`; needed for a float32 plan only
    exact_ap: ap.Measured | None = None  # of `exact` on data.val, if it was measured before


class Verdict(NamedTuple):
    """What a judge found: entries of the report, and what it changes in the manifest."""

    report: Mapping[str, Any] = MappingProxyType({})
    changes: Mapping[str, Any] = MappingProxyType({})


class Recipe(NamedTuple):
    """How a bundle of one precision is made from one in float32."""

    open_data: Callable[..., Data]  # as `open_splits`
    write: Callable[[Bundle, Materials], Bundle]  # changes the graphs of the copy it is given
    judge: Callable[[Bundle, Materials], Verdict]  # raises Refused
    instead: str  # what to export if the judge refuses


# --- fp32


def _open_val(
    data_dir: Path | None, classes: Sequence[ClassInfo], *, val_fraction: float | None
) -> Data:
    if data_dir is None:
        return Data()
    val = open_evaluation_data(data_dir, "val", classes=classes, val_fraction=val_fraction)
    require_classes(classes, val.classes)
    return Data(val=val)


def _write_fp32(copy: Bundle, materials: Materials) -> Bundle:
    return copy


def _judge_fp32(made: Bundle, materials: Materials) -> Verdict:
    """Judge the plan, if any, by PyTorch's answers; the graphs have been verified already."""
    if materials.planner is None:
        return Verdict()
    assert materials.model is not None
    with (
        closing(open_plan(made, materials.planner)) as plan,
        stage("verifying the plan in TensorRT against PyTorch"),
    ):
        images = sample_images(made)
        found = verify(materials.model, plan, preprocess=made.manifest.preprocess, images=images)
    changes = {} if batches_allowed(found) == "any" else {"batches": "equal_shapes"}
    return Verdict({"plan": found}, changes)


# --- fp16: for TensorRT; the graphs for CPUs stay float32


def _write_fp16(copy: Bundle, materials: Materials) -> Bundle:
    return add_half_graph(copy, "fp16")


def _judge_fp16(made: Bundle, materials: Materials) -> Verdict:
    """Judge by the detections of float32: fp16 emulated on this CPU, and in the plan, if any."""
    images = _agreement_images(made, materials.data.val)
    with stage(f"running images in fp16, emulated: {len(images)}"):
        report = {"emulated": agreement.judge_rounding(materials.exact, "fp16", images=images)}
    if materials.planner is not None:
        with (
            closing(open_plan(made, materials.planner)) as plan,
            stage(f"running images in fp16 in TensorRT: {len(images)}"),
        ):
            report["plan"] = agreement.judge_engine(materials.exact, plan, images=images)
    return Verdict({"agreement": report})


def _agreement_images(bundle: Bundle, data: EvaluationData | None) -> list[Uint8Array]:
    """Images of a data set, evenly spread; without one, samples and photographs, also mirrored."""
    if data is not None:
        count = min(NUM_AGREEMENT_IMAGES, len(data))
        return [data.read_image(number * len(data) // count) for number in range(count)]
    photos = photographs()
    mirrored = [np.ascontiguousarray(photo[:, ::-1]) for photo in photos]
    return [*sample_images(bundle), *photos, *mirrored]


# --- bf16, int8 and fp8: judged by AP, as they are served


def open_splits(
    data_dir: Path | None, classes: Sequence[ClassInfo], *, val_fraction: float | None = None
) -> Data:
    """The splits train and val in a directory; without one, the demo's, if the classes are its.

    Raises:
        ValueError: neither applies, other classes, or faulty data, such as a split without images.
    """
    opened = partial(open_evaluation_data, data_dir, classes=classes, val_fraction=val_fraction)
    val = opened("val")
    train = (
        digits.DigitsDataset("train", num_images=calibration.NUM_IMAGES)
        if data_dir is None
        else opened("train")
    )
    for dataset in (train, val):
        require_classes(classes, dataset.classes)
    return Data(train, val)


def _write_bf16(copy: Bundle, materials: Materials) -> Bundle:
    """OpenVINO computes unchanged graphs in bf16; engines on a GPU need a graph with casts."""
    return add_half_graph(copy, "bf16")


def _write_int8(copy: Bundle, materials: Materials) -> Bundle:
    """Write int8 where it pays; in a plan, the rest is float16."""
    write_graphs(_quantise(copy, materials, INT8), copy.directory)
    return copy if materials.planner is None else add_half_graph(copy, "fp16")


def _write_fp8(copy: Bundle, materials: Materials) -> Bundle:
    """Write fp8 where it pays, and float16 elsewhere, for a plan; the other graphs stay float32."""
    return add_half_graph(copy, "fp16", model=_quantise(copy, materials, FP8).plugin)


def _quantise(copy: Bundle, materials: Materials, kind: EightBits) -> Graphs:
    train = materials.data.train
    assert train is not None
    with stage(f"calibrating on {min(calibration.NUM_IMAGES, len(train))} images"):
        return quantise(copy, train, kind=kind)


def _judge_ap(made: Bundle, materials: Materials) -> Verdict:
    val, precision = materials.data.val, made.manifest.precision
    assert val is not None
    ap.require_computable(made)
    before = materials.exact_ap or ap.measure(materials.exact, val)
    ap.require_judgeable(before)
    after = ap.measure(made, val)
    ap.require_kept(before, after, precision=precision)
    report = ap.compare(before, after, precision=precision, num_images=len(val))
    changes = {"metrics": after.metrics.defined, "thresholds": after.metrics.thresholds}
    return Verdict({"ap": report}, changes)


RECIPES: Mapping[Precision, Recipe] = {
    "fp32": Recipe(_open_val, _write_fp32, _judge_fp32, "RUNTIME=onnx"),
    "fp16": Recipe(_open_val, _write_fp16, _judge_fp16, "PRECISION=bf16 or fp32"),
    "bf16": Recipe(open_splits, _write_bf16, _judge_ap, "PRECISION=fp32"),
    "int8": Recipe(
        open_splits,
        _write_int8,
        _judge_ap,
        "PRECISION=bf16 or fp32, or with a train split that is more like the val split",
    ),
    "fp8": Recipe(open_splits, _write_fp8, _judge_ap, "PRECISION=fp16"),
}


def require_possible(precision: Precision, planner: Planner | None) -> None:
    """Raise ValueError if no bundle of a precision can be made on this machine."""
    if precision != "fp8":
        return
    if planner is None:
        raise ValueError("only TensorRT computes in fp8; export with RUNTIME=tensorrt")
    gpu = planner.cuda.device()
    if tuple(map(int, gpu.compute_capability.split("."))) < FP8_CAPABILITY:
        raise ValueError(
            f"fp8 needs a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or newer, "
            f"{gpu.name} has {gpu.compute_capability}; export with PRECISION=int8 or fp16"
        )
