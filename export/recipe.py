"""From a checkpoint to a bundle, top to bottom.

Trace, verify against PyTorch, write in the precision, build a plan, judge, report.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bundle.layout import CACHE_FOLDER, MANIFEST_FILE, REPORT_FILE
from bundle.manifest import Bundle, Manifest, Precision
from bundle.staging import require_replaceable, staged
from export.bundle_writer import preprocess_of, read_samples, sample_images, write_exact
from export.graph.tensorrt_plan import Planner, add_plan, open_plan
from export.judge.answers import (
    OpenEngine,
    engines_in_torch,
    engines_on_cpu,
    find_torch_cuda,
    judge_answers,
)
from export.judge.refusal import Refused
from export.judge.verify import batches_allowed, verify
from export.precisions import RECIPES, Materials, require_possible
from export.stage import stage
from model.checkpoints.checkpoint_file import Checkpoint, build_model
from model.network.inference import DetectionModel

log = logging.getLogger(__name__)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: Precision = "fp32",
    data_dir: Path | None = None,
    val_fraction: float | None = None,
    name: str | None = None,
    samples: Sequence[Path] | None = None,
    planner: Planner | None = None,
) -> Manifest:
    """Export, verify, judge and write a bundle to the directory `out`, replacing a bundle there.

    Args:
        data_dir: of a data set: its split train calibrates int8; its split val is used
            to measure AP, to test fp16 and, without `samples`, for a few samples. If None, the
            demo's; for fp16, photographs.
        val_fraction: the part of its images that becomes its split val if it has none.
        name: of the model; if None, see `default_name`.
        samples: image files that the page offers and the graph is verified on; if None, a few
            validation images of the data set, or of the demo if the model knows its digits.
        planner: to add a TensorRT plan, which is then what is judged.

    Raises:
        ValueError: the checkpoint is inconsistent, a sample is not an image, there are no images,
            `out` is not a bundle, the graph or the plan differs from the model, the precision
            costs too much or cannot be judged here, or no plan can be built.
        OSError: the disk is full or not writable.
        In all cases `out` is left as it was.
    """
    require_replaceable(out)
    require_possible(precision, planner)
    data = RECIPES[precision].open_data(data_dir, checkpoint.classes, val_fraction=val_fraction)
    chosen = data.val if data_dir is not None else None
    sample_files = read_samples(checkpoint, samples, data=chosen)
    with traced(checkpoint, beside=out, name=name, samples=sample_files) as (exact, report):
        materials = exact._replace(data=data, planner=planner)
        with staged(out) as directory:
            return make_bundle(materials, directory, precision=precision, report=report).manifest


@contextmanager
def traced(
    checkpoint: Checkpoint, *, beside: Path, name: str | None, samples: Mapping[str, bytes]
) -> Iterator[tuple[Materials, dict[str, Any]]]:
    """The float32 bundle of a checkpoint, verified, and its report; in a folder removed at the end.

    Args:
        beside: a bundle to be; the folder is made in the same one.
        name, samples: see `write_exact`.

    Raises:
        ValueError: the checkpoint is inconsistent, or the graph differs from the model.
    """
    model = DetectionModel(build_model(checkpoint), preprocess_of(checkpoint)).eval()
    folder = beside.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fp32.", dir=folder) as scratch:
        with stage("tracing the model and writing its graphs"):
            directory = Path(scratch) / "fp32"  # with the rights of any folder; scratch is private
            directory.mkdir()
            exact = write_exact(checkpoint, model, directory=directory, name=name, samples=samples)
        comparisons = verify_on_cpu(exact, model)
        exact = exact.with_manifest(batches=batches_allowed(comparisons))
        versions = exact.manifest.provenance["versions"]
        yield Materials(exact, model=model), {"comparisons": comparisons, "versions": versions}


def make_bundle(
    materials: Materials, directory: Path, *, precision: Precision, report: Mapping[str, Any]
) -> Bundle:
    """Write a bundle to an empty directory, judge it, and save it with its report.

    Args:
        report: what is known about the float32 bundle.

    Raises:
        ValueError: the bundle is refused, or cannot be made or judged here.
    """
    recipe = RECIPES[precision]
    made = write_bundle(materials, directory, precision=precision)
    if materials.planner is not None:
        with stage(f"building a TensorRT plan; shape profiles: {len(materials.planner.profiles)}"):
            made = add_plan(made, materials.planner)
    try:
        verdict = recipe.judge(made, materials)
        made = made.with_manifest(**verdict.changes)
        with stage("testing every engine on the known answers"):
            answers = try_engines(made, materials.planner, open_torch=find_torch_cuda())
    except Refused as refusal:
        raise ValueError(
            f"{refusal}, so the bundle was not written; export with {recipe.instead}"
        ) from refusal
    tell_default_threshold(made.manifest)
    if made.manifest.batches == "equal_shapes":
        log.warning(
            "an engine's answer to an image changes beside larger ones, so only images of "
            "equal shape will share a batch"
        )
    content = json.dumps({**report, **verdict.report, "known_answers": answers}, indent=2)
    (directory / REPORT_FILE).write_text(content + "\n")
    shutil.rmtree(directory / CACHE_FOLDER, ignore_errors=True)
    return made.save()


def write_bundle(materials: Materials, directory: Path, *, precision: Precision) -> Bundle:
    """Write a bundle in a precision, without plan or judgement; the manifest is not saved yet."""
    exact = materials.exact
    left_out = shutil.ignore_patterns(MANIFEST_FILE, CACHE_FOLDER)
    shutil.copytree(exact.directory, directory, dirs_exist_ok=True, ignore=left_out)
    copy = Bundle(directory, exact.manifest).with_manifest(precision=precision)
    return RECIPES[precision].write(copy, materials)


def try_engines(
    made: Bundle, planner: Planner | None, *, open_torch: OpenEngine | None
) -> list[dict[str, Any]]:
    """`judge_answers` of the engines on a CPU, of torch-cuda and of the plan, if there are any."""
    answers = judge_answers(made, engines_on_cpu(made))
    answers += judge_answers(made, engines_in_torch(made, open_torch))
    if planner is not None:
        with closing(open_plan(made, planner)) as plan:
            answers += judge_answers(made, [plan])
    return answers


def verify_on_cpu(exact: Bundle, model: DetectionModel) -> list[dict[str, Any]]:
    """`verify` in every engine that may serve the bundle on a CPU."""
    comparisons = []
    for engine in engines_on_cpu(exact):
        runtime, graph = engine.info.runtime, engine.info.graph
        with stage(f"verifying the {graph} graph in {runtime} against PyTorch"):
            found = verify(
                model, engine, preprocess=exact.manifest.preprocess, images=sample_images(exact)
            )
        comparisons += [{"runtime": runtime, "graph": graph, **item} for item in found]
    return comparisons


def tell_default_threshold(manifest: Manifest) -> None:
    """Log the threshold that requests get which name none, and where it comes from."""
    if manifest.thresholds:
        log.info("default thresholds: the best F1, %s", manifest.thresholds.overall)
        return
    has_ap = "AP" in manifest.metrics  # which may be 0
    log.warning(
        "default threshold: %s for every class, as the checkpoint %s; make evaluate BUNDLE= DATA= "
        "ARGS=--save-thresholds writes better ones into the bundle",
        manifest.threshold,
        "finds no object of its validation images" if has_ap else "was not evaluated",
    )
