"""Chooses the plan to run: the bundle's own, one built here before, or one built now."""

import hashlib
import inspect
import json
import logging
from typing import Any, NamedTuple

from bundle.layout import CACHE_FOLDER, STANDARD_FORM
from bundle.manifest import Bundle, Manifest
from bundle.tensorrt_plan import (
    Fingerprint,
    ShapeProfile,
    default_profiles,
    form_for_tensorrt,
)
from engines.compiled_cache import keep_compiled, read_compiled
from engines.gpu import tensorrt_builder
from engines.gpu.cuda import Cuda
from engines.gpu.tensorrt_builder import BuildOptions, build_plan
from engines.gpu.tensorrt_runtime import REBUILD, find_plugin, fingerprint_of, load_plugin

logger = logging.getLogger(__name__)

_KEPT = "tensorrt.plan"  # in the cache


class Plan(NamedTuple):
    """A serialized engine, the batches it takes, and the form of graph it was built from."""

    data: bytes
    profiles: tuple[ShapeProfile, ...]
    graph: str


def find_plan(bundle: Bundle, *, trt: Any, cuda: Cuda, may_build: bool) -> Plan:
    """The plan to run on this machine; also registers the operator it needs with TensorRT.

    This is the bundle's own plan if it was built for this machine. Otherwise, if `may_build`, a
    plan is built from the ONNX graph and kept in the bundle's cache for the next start; it is not
    verified against PyTorch.

    Raises:
        ValueError: no plan fits, and none may or can be built; says what differs.
    """
    directory, manifest = bundle
    shipped = manifest.tensorrt
    form = shipped.graph if shipped else form_for_tensorrt(manifest.graphs)
    plugin = find_plugin() if form != STANDARD_FORM else None
    here = fingerprint_of(trt, cuda.device(), plugin=plugin)
    if shipped is None:
        profiles = default_profiles(manifest.preprocess)
        reason = f"{directory} holds no TensorRT plan"
    else:
        profiles = shipped.profiles
        path = directory / shipped.file
        differences = shipped.fingerprint.differences(here)
        if not differences:
            if form != STANDARD_FORM:
                load_plugin(trt, plugin)
            return Plan(path.read_bytes(), profiles, form)
        reason = f"{path} was not built for this machine ({'; '.join(differences)})"
    if not may_build:
        raise ValueError(f"{reason}; {REBUILD}")
    if form != STANDARD_FORM:
        load_plugin(trt, plugin)
    logger.warning("%s: using a plan built here, unverified", reason)
    key = _key(manifest, form, here, profiles)
    data = read_compiled(directory, _KEPT, key=key)
    if data is None:
        timing_cache = directory / CACHE_FOLDER / "tensorrt-timing.cache"
        options = BuildOptions(profiles, plugin, timing_cache=timing_cache)
        data = build_plan(trt, bundle.graph(form), inputs=manifest.inputs, options=options)
        keep_compiled(directory, _KEPT, key=key, export=lambda: memoryview(data))
    return Plan(data, profiles, form)


def _key(
    manifest: Manifest, form: str, here: Fingerprint, profiles: tuple[ShapeProfile, ...]
) -> str:
    """A key that changes with everything a plan is built from."""
    shapes = [profile.model_dump() for profile in profiles]
    builder = inspect.getsource(tensorrt_builder)
    parts = (manifest.files, form, here.model_dump(), shapes, builder)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
