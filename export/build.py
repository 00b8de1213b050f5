"""From a checkpoint to a verified bundle."""

import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.layout import CACHE_FOLDER, REPORT_FILE, SAMPLES_FOLDER
from bundle.manifest import INPUT_SPECS, Batches, Manifest, output_specs
from bundle.preprocess import Preprocess, decode_image
from bundle.staging import require_replaceable, staged
from engines.base import Engine
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from export.graph.tensorrt_plan import Planner, add_plan, open_plan
from export.graph.trace import export_graphs, write_graphs
from export.judge.verify import batches_allowed, verify
from model.checkpoints.checkpoint_file import Checkpoint, build_model
from model.config import ModelConfig, Variant
from model.data.digits import DigitsDataset
from model.network.inference import DetectionModel

SIDE_STEP_PX = 32
# On a CPU a batch pays where images are small: 1.5 times the images/s at 128 x 128. At 800 x 1067
# batches of 1, 2 and 4 ran 0.25, 0.31 and 0.29 images/s, each further image for 0.4 GB of memory.
MAX_BATCH_SIZE = 8
MAX_BATCH_PIXELS = 1_000_000
_DIGIT_SAMPLES = (5, 23, 31, 39)  # validation images over photographs that are CC0
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")

log = logging.getLogger(__name__)


def build_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    name: str | None = None,
    samples: Sequence[Path] = (),
    planner: Planner | None = None,
) -> Manifest:
    """Export, verify and write a bundle to the directory `out`; a bundle there is replaced.

    Args:
        name: of the model; the name of its configuration if None.
        samples: image files that the page offers and the graph is verified on; if none and the
            model knows the demo's digits, a few of their validation images.
        planner: for a TensorRT plan of the graph, too.

    Raises:
        ValueError: the checkpoint is inconsistent, a sample is not an image, `out` holds
            something else than a bundle, the graph or the plan differs from the model, or there
            can be no plan.
        OSError: the disk is full or not writable.
        In all cases `out` is as it was before.
    """
    require_replaceable(out)
    preprocess = preprocess_of(checkpoint)
    model = DetectionModel(build_model(checkpoint), preprocess).eval()
    sample_files = _samples(checkpoint, samples)
    with staged(out) as directory:
        for file, data in sample_files.items():
            (directory / file).parent.mkdir(exist_ok=True)
            (directory / file).write_bytes(data)
        with stage("tracing the model and writing its graphs"):
            graphs = write_graphs(export_graphs(model, min_side=preprocess.min_side), directory)
        names = tuple(sample_files)
        manifest = _manifest(checkpoint, preprocess, graphs, names, name or checkpoint.config.name)
        images = [decode_image(data) for data in sample_files.values()]
        report: dict[str, Any] = {
            "comparisons": _verify_on_cpu(model, directory, manifest, images),
            "versions": manifest.provenance["versions"],
        }
        if planner is not None:
            manifest = plan_bundle(directory, manifest, planner)
            with stage("verifying the plan in TensorRT against PyTorch"):
                report["tensorrt"] = verify_plan(model, directory, manifest, planner, images)
        manifest = manifest.model_copy(update={"batches": _batches(report)})
        (directory / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        manifest = manifest.save(directory)
    return manifest


def _verify_on_cpu(
    model: DetectionModel,
    directory: Path,
    manifest: Manifest,
    images: Sequence[npt.NDArray[np.uint8]],
) -> list[dict[str, Any]]:
    """`verify` in every engine that may serve the bundle on a CPU."""
    engines: list[Callable[[Path, Manifest], Engine]] = [OnnxRuntimeEngine]
    with suppress(ImportError):  # there is no OpenVINO for every platform
        from engines.cpu.openvino_engine import OpenVinoEngine

        engines.append(OpenVinoEngine)
    comparisons = []
    for open_engine in engines:
        engine = open_engine(directory, manifest)
        runtime, graph = engine.info.runtime, engine.info.graph
        try:
            with stage(f"verifying the {graph} graph in {runtime} against PyTorch"):
                found = verify(model, engine, manifest.preprocess, images)
        finally:
            engine.close()
        comparisons += [{"runtime": runtime, "graph": graph, **item} for item in found]
    shutil.rmtree(directory / CACHE_FOLDER, ignore_errors=True)
    return comparisons


def _batches(report: dict[str, Any]) -> Batches:
    """Which images may share a batch in every engine that was compared."""
    allowed = batches_allowed([*report["comparisons"], *report.get("tensorrt", [])])
    if allowed == "equal_shapes":
        log.warning(
            "an engine gives an image another answer beside larger ones: the bundle is going to be "
            "served in batches of images of equal shape"
        )
    return allowed


def plan_bundle(directory: Path, manifest: Manifest, planner: Planner) -> Manifest:
    """`add_plan`, with a word on how long it takes."""
    with stage(f"building a TensorRT plan for {len(planner.profiles)} profiles of shapes"):
        return add_plan(directory, manifest, planner)


def verify_plan(
    model: DetectionModel,
    directory: Path,
    manifest: Manifest,
    planner: Planner,
    images: Sequence[npt.NDArray[np.uint8]],
) -> list[dict[str, Any]]:
    """Compare the plan of a bundle in float32 with the model; see `verify`."""
    plan = open_plan(directory, manifest, planner)
    try:
        return verify(model, plan, manifest.preprocess, images)
    finally:
        plan.close()


def preprocess_of(checkpoint: Checkpoint) -> Preprocess:
    """The preprocessing of a bundle: that of training, for images that the graph takes."""
    preprocess = checkpoint.config.preprocess
    least = max(preprocess.min_side, smallest_side(checkpoint.config.model))
    return preprocess.model_copy(update={"min_side": least})


def smallest_side(config: ModelConfig) -> int:
    """Smallest height and width the graph may get: a square of it has a token for every query.

    Only proposals are taken from tokens; other variants take every size from 1 x 1.
    """
    if config.variant is not Variant.TWO_STAGE:
        return 1
    side = SIDE_STEP_PX
    while _num_tokens(side, config.num_levels) < config.num_queries:
        side += SIDE_STEP_PX
    return side


def batch_limit(preprocess: Preprocess) -> int:
    """Most images that the service may put in one batch: few where they are large."""
    pixels = preprocess.short_side * preprocess.long_side
    return max(1, min(MAX_BATCH_SIZE, MAX_BATCH_PIXELS // pixels))


def _num_tokens(side: int, num_levels: int) -> int:
    """Tokens of a square image: every level is half the one before, rounded up; the first, 1/8."""
    return sum((-(-side // (8 << level))) ** 2 for level in range(num_levels))


def _manifest(
    checkpoint: Checkpoint,
    preprocess: Preprocess,
    graphs: dict[str, str],
    samples: tuple[str, ...],
    name: str,
) -> Manifest:
    config = checkpoint.config.model
    count = min(config.num_detections, config.num_queries * config.num_classes)
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    provenance: dict[str, Any] = {
        "checkpoint": checkpoint.path.name,
        "checkpoint_sha256": digest,
        "config": checkpoint.config.name,
        "weights": checkpoint.provenance,
        "versions": {package: version(package) for package in _PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Manifest(
        name=name,
        variant=config.variant.value,
        graphs=graphs,
        inputs=INPUT_SPECS,
        outputs=output_specs(count),
        preprocess=preprocess,
        classes=checkpoint.classes,
        num_detections=count,
        max_batch_size=batch_limit(preprocess),
        metrics=checkpoint.metrics,
        provenance=provenance,
        samples=samples,
    )


def _samples(checkpoint: Checkpoint, files: Sequence[Path]) -> dict[str, bytes]:
    """Sample images by their name in the bundle."""
    samples = {}
    for number, file in enumerate(files, start=1):
        data = file.read_bytes()
        try:
            decode_image(data)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        samples[f"{SAMPLES_FOLDER}/{number}{file.suffix.lower()}"] = data
    if not files and checkpoint.classes == DigitsDataset.classes:
        digits = DigitsDataset("val")
        for number, index in enumerate(_DIGIT_SAMPLES, start=1):
            buffer = io.BytesIO()
            Image.fromarray(digits.read_image(index)).save(buffer, "PNG")
            samples[f"{SAMPLES_FOLDER}/{number}.png"] = buffer.getvalue()
    return samples


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Say what is being done, and then how long it took."""
    log.info("%s ...", description)
    start = time.perf_counter()
    yield
    log.info("  took %.0f s", time.perf_counter() - start)
