"""What every engine is: a batch of padded images in, the graph's top detections out."""

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bundle.layout import HALF_FORM
from bundle.manifest import REMEDY, Manifest, TensorSpec
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import BatchShape

logger = logging.getLogger(__name__)

# latency: all threads on one batch. throughput: a batch is split, a thread for each part. auto: a
# batch is split if that is faster here, and an image that is alone has all threads.
Mode = Literal["auto", "latency", "throughput"]
FloatType = Literal["fp32", "bf16"]  # of what is not quantised


class EngineFailure(RuntimeError):
    """The runtime failed on a batch, or its output was not finite."""


class EngineInfo(NamedTuple):
    """What runs a bundle: the runtime and its options."""

    runtime: str
    precision: str  # what it computes in; fp32 if the bundle's is not possible or slower here
    float_type: str  # of what is not quantised: that of the precision, unless that is of 8 bits
    graph: str  # the form of the graph; see `bundle.layout`
    threads: int  # in total
    streams: int  # parts of a batch that run in parallel


class Engine(Protocol):
    """A loaded graph."""

    name: str
    info: EngineInfo
    max_batch_size: int
    gpu_memory_bytes: int  # that it took at start
    runs_at_once: int  # how many threads may call `run` at a time

    @property
    def largest_batches(self) -> Sequence[BatchShape]:
        """The largest batches that it was built for; empty if all sizes are alike to it."""

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        """Detections of images (B, H, W, 3) RGB with padding_mask (B, H, W), True on padding.

        Raises:
            EngineFailure: the runtime failed, or an output is not finite.
        """

    def close(self) -> None:
        """Release the runtime; `run` must not be called again."""


@runtime_checkable
class CapturesGraphs(Protocol):
    """An engine that captures CUDA graphs."""

    @property
    def num_captures(self) -> int:
        """How many it has captured since it was opened."""


def check_names(
    path: Path, side: str, *, specs: Iterable[TensorSpec], names: Iterable[str]
) -> None:
    """Raise ValueError unless the inputs or outputs of a graph match the manifest."""
    expected, found = sorted(spec.name for spec in specs), sorted(names)
    if expected != found:
        raise ValueError(f"{path}: expected {side} {expected}, got {found}; {REMEDY}")


def choose_precision(manifest: Manifest, possible: Collection[str]) -> str:
    """The bundle's precision, or fp32 if the engine cannot compute in it here."""
    if manifest.precision in possible:
        return manifest.precision
    logger.warning("%s is not possible here: the bundle runs in fp32", manifest.precision)
    return "fp32"


def graph_precision(manifest: Manifest, graph: str) -> str:
    """What a graph of this form computes in where the graph alone decides, which is on a GPU."""
    if manifest.precision not in ("fp16", "bf16") or graph == HALF_FORM:
        return manifest.precision
    logger.warning(
        "the bundle has no graph in %s and runs in fp32; export it again", manifest.precision
    )
    return "fp32"


def float_type_of(precision: str, graph: str) -> str:
    """What a graph of this precision and form computes floats in, unless the engine chooses."""
    if precision not in ("int8", "fp8"):
        return precision
    return "fp16" if graph == HALF_FORM else "fp32"


def remedy(error: Exception, otherwise: str) -> str:
    """What to do about a runtime's error: memory, if that was too little, or else `otherwise`."""
    is_memory = "std::bad_alloc" in str(error)
    return "stop other programs, or allow the process more memory" if is_memory else otherwise


def reason(error: Exception) -> str:
    """A runtime's error in one line, without locations in its source."""
    lines = (line.strip() for line in str(error).splitlines())
    told = " ".join(line for line in lines if line and not line.startswith("Exception from"))
    return told.replace("std::bad_alloc", "there is too little memory")
