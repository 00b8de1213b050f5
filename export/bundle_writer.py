"""From a checkpoint to the float32 bundle that every other one is made from: graphs, manifest."""

import copy
import hashlib
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bundle.known_answers import write_known_answers
from bundle.layout import SAMPLES_FOLDER
from bundle.manifest import INPUT_SPECS, Bundle, Manifest, output_specs
from bundle.preprocess import Preprocess, Uint8Array, decode_image
from export.graph.trace import export_graphs, write_graphs
from export.judge.verify import photographs
from model.checkpoints.checkpoint_file import Checkpoint
from model.config import ModelConfig, Variant
from model.data.digits import DigitsDataset
from model.data.evaluation_data import EvaluationData
from model.network.inference import DetectionModel, torch_predictor

SIDE_STEP_PX = 32
# On a CPU a batch pays where images are small: 1.5 times the images/s at 128 x 128. At 800 x 1067
# batches of 1, 2 and 4 ran 0.25, 0.31 and 0.29 images/s, and each further image took 0.4 GB.
MAX_BATCH_SIZE = 8
MAX_BATCH_PIXELS = 1_000_000
NUM_SAMPLES = 4  # of a data set
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}
_DIGIT_SAMPLES = (5, 23, 31, 39)  # validation images whose photographs are CC0
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def write_exact(
    checkpoint: Checkpoint,
    model: DetectionModel,
    *,
    directory: Path,
    name: str | None,
    samples: Mapping[str, bytes],
) -> Bundle:
    """Write samples, known answers and float32 graphs; the manifest is not saved yet.

    Args:
        model: of the checkpoint, in evaluation mode, with the preprocessing of the bundle.
        name: of the bundle's model; if None, see `default_name`.
        samples: see `read_samples`.

    Raises:
        ValueError: a graph is not valid ONNX.
    """
    for file, data in samples.items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_bytes(data)
    write_known_answers(
        directory,
        torch_predictor(model),
        preprocess=model.preprocess,
        images=[*map(decode_image, samples.values()), *photographs()],
        rounded=torch_predictor(_rounded(model)),
    )
    config = checkpoint.config.model
    num_detections = min(config.num_detections, config.num_queries * config.num_classes)
    manifest = Manifest(
        name=name or default_name(checkpoint),
        variant=config.variant.value,
        graphs=write_graphs(export_graphs(model, min_side=model.preprocess.min_side), directory),
        inputs=INPUT_SPECS,
        outputs=output_specs(num_detections),
        preprocess=model.preprocess,
        classes=checkpoint.classes,
        num_detections=num_detections,
        max_batch_size=batch_limit(model.preprocess),
        metrics=checkpoint.metrics,
        thresholds=checkpoint.thresholds,
        provenance=_provenance(checkpoint),
        samples=tuple(samples),
    )
    return Bundle(directory, manifest)


def read_samples(
    checkpoint: Checkpoint, files: Sequence[Path] | None, *, data: EvaluationData | None
) -> dict[str, bytes]:
    """Sample images by their name in the bundle.

    Args:
        files: images; if None, a few of `data`, or of the demo's if the model knows its digits.
        data: a validation set.

    Raises:
        ValueError: a file is not an image, or an image of `data` cannot be read.
        OSError: a file cannot be read.
    """
    if files is not None:
        return _read_files(files)
    if data is not None:
        return _encoded(data, _with_boxes(data), image_format="JPEG")
    if checkpoint.classes == DigitsDataset.classes:
        return _encoded(DigitsDataset("val"), _DIGIT_SAMPLES, image_format="PNG")
    return {}


def _read_files(files: Sequence[Path]) -> dict[str, bytes]:
    samples = {}
    for number, file in enumerate(files, start=1):
        content = file.read_bytes()
        try:
            decode_image(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        samples[f"{SAMPLES_FOLDER}/{number}{file.suffix.lower()}"] = content
    return samples


def _with_boxes(data: EvaluationData) -> list[int]:
    """A few images with boxes, evenly spread; any images if none has boxes."""
    boxed = {entry["image_id"] for entry in data.ground_truth()["annotations"]}
    indices = [index for index in range(len(data)) if data.image_id(index) in boxed]
    indices = indices or list(range(len(data)))
    count = min(NUM_SAMPLES, len(indices))
    return [indices[number * len(indices) // count] for number in range(count)]


def _encoded(
    data: EvaluationData, indices: Sequence[int], *, image_format: str
) -> dict[str, bytes]:
    samples = {}
    for number, index in enumerate(indices, start=1):
        buffer = io.BytesIO()
        Image.fromarray(data.read_image(index)).save(buffer, image_format, quality=90)
        samples[f"{SAMPLES_FOLDER}/{number}{_SUFFIXES[image_format]}"] = buffer.getvalue()
    return samples


def sample_images(bundle: Bundle) -> list[Uint8Array]:
    """The samples of a bundle, decoded: (H, W, 3) uint8 RGB."""
    files = (bundle.directory / sample for sample in bundle.manifest.samples)
    return [decode_image(file.read_bytes()) for file in files]


def preprocess_of(checkpoint: Checkpoint) -> Preprocess:
    """The preprocessing of a bundle: that of training, with the smallest side the graph takes."""
    preprocess = checkpoint.config.preprocess
    least = max(preprocess.min_side, smallest_side(checkpoint.config.model))
    return preprocess.model_copy(update={"min_side": least})


def smallest_side(config: ModelConfig) -> int:
    """Smallest side of an image for the graph: such a square has a token for every query.

    Only two_stage takes its queries from tokens; other variants take every size from 1 x 1.
    """
    if config.variant is not Variant.TWO_STAGE:
        return 1
    side = SIDE_STEP_PX
    while _num_tokens(side, config.num_levels) < config.num_queries:
        side += SIDE_STEP_PX
    return side


def batch_limit(preprocess: Preprocess) -> int:
    """How many images the service may put in one batch: few if they are large."""
    pixels = preprocess.short_side * preprocess.long_side
    return max(1, min(MAX_BATCH_SIZE, MAX_BATCH_PIXELS // pixels))


def _rounded(model: DetectionModel) -> DetectionModel:
    """The model with weights rounded to bfloat16, which every machine can compute in float32."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    return rounded


def _num_tokens(side: int, num_levels: int) -> int:
    """Tokens of a square image: the first level is 1/8, each next one half, rounded up."""
    return sum((-(-side // (8 << level))) ** 2 for level in range(num_levels))


def default_name(checkpoint: Checkpoint) -> str:
    """The name of a model: its data set's, or else its file's; for the demo, its configuration's.

    For best.safetensors and last.safetensors, the folder's name stands for the file's.
    """
    data = checkpoint.provenance.get("data")
    dataset = data.get("dataset") if isinstance(data, dict) else None
    if dataset == "digits":
        return checkpoint.config.name
    path = checkpoint.path.resolve()
    return dataset or (path.parent.name if path.stem in ("best", "last") else path.stem)


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint": checkpoint.path.name,
        "checkpoint_sha256": digest,
        "config": checkpoint.config.name,
        "weights": checkpoint.provenance,
        "versions": {package: version(package) for package in _PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
