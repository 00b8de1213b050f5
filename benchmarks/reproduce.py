"""The published results of Deformable DETR, measured here: python -m benchmarks.reproduce.

Downloads COCO val2017 and the weights that mmdetection published, evaluates the checkpoint and the
bundle of each variant, in reduced precisions too, and prints AP beside the published one. Takes
hours on a CPU. Everything that is finished is kept in --out, and the same command resumes there.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command, raise_at_ctrl_c

    begin_command()

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.coco_val import COCO_VAL, Archive, fetch_archives
from benchmarks.machine import describe_machine, today
from benchmarks.published_results import (
    EXACT_FORMS,
    FORMS,
    PUBLISHED,
    Result,
    format_results,
    load_result,
    save_result,
)
from bundle.atomic import write_atomically
from bundle.detect import Predict
from bundle.manifest import Bundle, ClassInfo, Precision
from bundle.preprocess import Preprocess
from bundle.staging import staged
from engines.base import EngineFailure
from engines.load import open_engine
from export.published import Export, published_bundle
from model.checkpoints.published_urls import checkpoint_name, digest_prefix, published_url

OUT = Path("runs/reproduce")
PACKAGES = ("torch", "onnxruntime", "openvino", "faster-coco-eval")
NOTE = """Images are evaluated one at a time, bundles in the engine that serves them. int8 is
calibrated on 128 of val2017's images, whose boxes are not used."""

log = logging.getLogger(__name__)


class Sources(NamedTuple):
    """Where everything comes from: the weights by variant, and the data set."""

    urls: Mapping[str, str]
    archives: Sequence[Archive] = COCO_VAL


class Task(NamedTuple):
    """One variant that is evaluated.

    Attributes:
        bundle: in float32.
        limit: evaluate only this many images of `data`.
        conditions: what results depend on.
    """

    variant: str
    checkpoint: Path
    bundle: Path
    data: Any  # EvaluationData
    limit: int | None
    conditions: Mapping[str, Any]


def reproduce(
    sources: Sources,
    out: Path,
    *,
    limit: int | None = None,
    forms: Sequence[str] = FORMS,
    export: Export | None = None,
) -> list[Result]:
    """Evaluate every variant of `sources` in every form, except those with a result in `out`.

    Args:
        limit: evaluate only this many images, the first ones.
        export: makes the float32 bundle; see `published_bundle`.

    Raises:
        ValueError, OSError: a download or an export failed; says what to do.
    """
    from model.data.data_set import open_data_set
    from model.data.evaluation_data import open_evaluation_data

    fetch_archives(sources.archives, out / "coco")
    data = open_evaluation_data(out / "coco", "val", classes=())
    annotations = open_data_set(out / "coco").layout.read("val").sha256
    conditions = {
        "annotations": annotations,
        "images": min(limit or len(data), len(data)),
        "machine": describe_machine(PACKAGES),
    }
    results = []
    for variant, url in sources.urls.items():
        checkpoint = out / checkpoint_name(variant)
        bundle = published_bundle(url, checkpoint, export=export)
        known = {**conditions, "weights": digest_prefix(url)}
        task = Task(variant, checkpoint, bundle, data, limit, known)
        results += [_measure_once(task, form, out / "results") for form in forms]
    return results


def _measure_once(task: Task, form: str, folder: Path) -> Result:
    """The result of one form, measured unless it is known."""
    path = folder / f"{task.variant}-{form}-{task.conditions['images']}.json"
    result = load_result(path, task.conditions)
    if result is None:
        log.info("evaluating %s, %s, on %d images", task.variant, form, task.conditions["images"])
        result = _measure_checkpoint(task) if form == "checkpoint" else _measure_bundle(task, form)
        save_result(path, result, conditions=task.conditions)
    return result


def _measure_checkpoint(task: Task) -> Result:
    import torch

    from model.checkpoints.checkpoint_file import build_model, load_checkpoint
    from model.network.inference import DetectionModel, torch_predictor
    from model.training.precision import set_tf32

    set_tf32(False)
    checkpoint = load_checkpoint(task.checkpoint)
    model = DetectionModel(build_model(checkpoint), checkpoint.config.preprocess)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predict = torch_predictor(model.to(device))
    return _measure(
        task, "checkpoint", predict, model.preprocess, checkpoint.classes, note=f"PyTorch, {device}"
    )


def _measure_bundle(task: Task, form: Any) -> Result:
    bundle = Bundle.load(task.bundle if form == "fp32" else _reduced_bundle(task, form))
    with closing(open_engine(bundle, float_type="bf16")) as engine:
        info, manifest = engine.info, bundle.manifest
        if info.precision != form:
            note = f"{info.runtime} computes {form} in {info.precision} on this machine"
            return Result(task.variant, form, {}, 0.0, note)
        note = f"{info.runtime}, {info.threads} threads"
        return _measure(task, form, engine.run, manifest.preprocess, manifest.classes, note=note)


def _reduced_bundle(task: Task, precision: Precision) -> Path:
    """The directory of the bundle in a reduced precision, made of the one in float32 once."""
    from export.precisions import Data, Materials
    from export.recipe import write_bundle

    directory = task.bundle.with_name(f"{task.bundle.name}-{precision}")
    if not directory.exists():
        exact = Bundle.load(task.bundle)
        with staged(directory) as scratch:
            materials = Materials(exact, Data(train=task.data))
            write_bundle(materials, scratch, precision=precision).save()
    return directory


def _measure(
    task: Task,
    form: str,
    predict: Predict,
    preprocess: Preprocess,
    classes: Sequence[ClassInfo],
    *,
    note: str,
) -> Result:
    from model.evaluation.evaluation import evaluate

    start = time.perf_counter()
    metrics = evaluate(predict, task.data, preprocess=preprocess, classes=classes, limit=task.limit)
    seconds = (time.perf_counter() - start) / task.conditions["images"]
    return Result(task.variant, form, metrics.defined, seconds, note)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=tuple(PUBLISHED), default=tuple(PUBLISHED))
    parser.add_argument(
        "--limit", type=int, help="evaluate only this many images, the first ones, for a first look"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help=f"folder for everything; default: {OUT}"
    )
    parser.add_argument("--base-url", help="a mirror of the published weights")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error(f"LIMIT= (--limit) must be at least 1, got {args.limit}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it into --out; 1 if an exact result is not the published one."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for ours in ("export", "model.data", "benchmarks", __name__):
        logging.getLogger(ours).setLevel(logging.INFO)
    urls = {variant: published_url(variant, base_url=args.base_url) for variant in args.variants}
    try:
        results = reproduce(Sources(urls), args.out, limit=args.limit)
        return report(results, args.out, limit=args.limit)
    except (ValueError, OSError, EngineFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes after the last result", file=sys.stderr)
        return 130


def report(results: Sequence[Result], out: Path, *, limit: int | None) -> int:
    """Print the results and write them to OUT/DATE.md; 1 if an exact one is not as published."""
    is_whole = limit is None
    images = "COCO val2017" if is_whole else f"the first {limit} images of COCO val2017"
    title = f"# Published detectors on {images}, {today()}"
    table = format_results(results, is_whole=is_whole)
    page = "\n\n".join([title, describe_machine(PACKAGES), table, NOTE]) + "\n"
    print(page)
    write_atomically(out / f"{today()}{'' if is_whole else f'-first-{limit}'}.md", page.encode())
    exact = [result for result in results if result.form in EXACT_FORMS]
    return int(is_whole and not all(result.is_within() for result in exact))


if __name__ == "__main__":
    raise_at_ctrl_c()
    sys.exit(main())
