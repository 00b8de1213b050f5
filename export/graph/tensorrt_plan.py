"""Builds a TensorRT plan from a bundle's graph, for the GPU of this machine."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle.layout import PLAN_FILE
from bundle.manifest import Bundle
from bundle.preprocess import Preprocess
from bundle.tensorrt_plan import (
    BatchShape,
    ShapeProfile,
    TensorRTPlan,
    default_profiles,
    form_for_tensorrt,
    max_batch,
)
from engines.base import Engine
from engines.gpu.cuda import Cuda, load_cuda
from engines.gpu.tensorrt_builder import BuildOptions, build_plan
from engines.gpu.tensorrt_engine import TensorRTEngine
from engines.gpu.tensorrt_runtime import find_plugin, fingerprint_of, load_plugin, load_tensorrt
from engines.guard import guard
from plugins import library

TIMING_CACHE = library.FOLDER.parent / "tensorrt" / "timing.cache"
SHAPE_FORMAT = "BATCHxHEIGHTxWIDTH, or the smallest, usual and largest of them as MIN:OPT:MAX"


class Planner(NamedTuple):
    """What it takes to build plans on this machine, and for which batches."""

    trt: Any
    cuda: Cuda
    plugin: Path
    profiles: tuple[ShapeProfile, ...]


def find_planner(shapes: Sequence[str], preprocess: Preprocess) -> Planner:
    """TensorRT, the GPU and the plugin, checked before any slow step.

    Args:
        shapes: see `choose_profiles`.
        preprocess: of the bundle.

    Raises:
        ValueError: a shape is wrong, or TensorRT, CUDA, a GPU or the plugin is missing; says what
            to do.
    """
    profiles = choose_profiles(shapes, preprocess)
    try:
        trt, cuda = load_tensorrt(), load_cuda()
        plugin = find_plugin()
        load_plugin(trt, plugin)
    except ValueError as error:
        raise ValueError(
            "a TensorRT plan is built on a machine with TensorRT and the kind of GPU that will run "
            f"it: {error}"
        ) from error
    assert plugin is not None
    return Planner(trt, cuda, plugin, profiles)


def choose_profiles(shapes: Sequence[str], preprocess: Preprocess) -> tuple[ShapeProfile, ...]:
    """The profiles named by `shapes`, or the default ones.

    Args:
        shapes: "8x800x1333" takes every batch up to that shape and is tuned for it;
            "1x128x128:1x800x1067:8x800x1333" also gives the smallest shape, and the usual one to
            tune for.
        preprocess: of the bundle; all of its images must fit.

    Raises:
        ValueError: a shape is malformed, or some image fits no profile.
    """
    if not shapes:
        return default_profiles(preprocess)
    profiles = tuple(_parse_profile(shape, preprocess.min_side) for shape in shapes)
    if max_batch(profiles, preprocess) < 1:
        short, long = preprocess.short_side, preprocess.long_side
        raise ValueError(
            f"expected shapes that take images of {short}x{long} and of {long}x{short}, got "
            f"{' '.join(shapes)}"
        )
    return profiles


def add_plan(bundle: Bundle, planner: Planner) -> Bundle:
    """Build a plan from one of the bundle's graphs; the manifest is not saved yet.

    TensorRT's measurements are kept for the next build.

    Raises:
        ValueError: TensorRT does not build it; the message includes TensorRT's own.
    """
    form = form_for_tensorrt(bundle.manifest.graphs)
    TIMING_CACHE.parent.mkdir(parents=True, exist_ok=True)
    options = BuildOptions(planner.profiles, planner.plugin, timing_cache=TIMING_CACHE)
    plan = build_plan(
        planner.trt, bundle.graph(form), inputs=bundle.manifest.inputs, options=options
    )
    (bundle.directory / PLAN_FILE).write_bytes(plan)
    tensorrt = TensorRTPlan(
        file=PLAN_FILE,
        graph=form,
        fingerprint=fingerprint_of(planner.trt, planner.cuda.device(), plugin=planner.plugin),
        profiles=planner.profiles,
    )
    return bundle.with_manifest(tensorrt=tensorrt)


def open_plan(bundle: Bundle, planner: Planner) -> Engine:
    """The engine that runs a bundle's plan.

    Raises:
        ValueError: the plan does not run on this GPU.
    """
    manifest = bundle.manifest
    assert manifest.tensorrt is not None
    return guard(
        TensorRTEngine(
            manifest,
            (bundle.directory / manifest.tensorrt.file).read_bytes(),
            profiles=manifest.tensorrt.profiles,
            trt=planner.trt,
            cuda=planner.cuda,
            max_graphs=0,
            graph=manifest.tensorrt.graph,
        ),
        manifest,
    )


def _parse_profile(text: str, min_side: int) -> ShapeProfile:
    matches = [re.fullmatch(r"(\d+)x(\d+)x(\d+)", part) for part in text.split(":")]
    shapes = [BatchShape(*map(int, match.groups())) for match in matches if match]
    if len(shapes) != len(matches) or len(shapes) not in (1, 3):
        raise ValueError(f"expected shapes as {SHAPE_FORMAT}, got {text!r}")
    least = shapes[0] if len(shapes) == 3 else BatchShape(1, min_side, min_side)
    usual, most = shapes[-2:] if len(shapes) == 3 else shapes * 2
    if not (least.batch == 1 and min(least) >= 1 and least.fits(usual) and usual.fits(most)):
        raise ValueError(f"expected shapes that rise from a batch of 1, got {text!r}")
    return ShapeProfile(min=least, opt=usual, max=most)
