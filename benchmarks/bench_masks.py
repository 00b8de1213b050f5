"""What it costs to make answers independent of the batch: python -m benchmarks.bench_masks.

Runs a variant in OpenVINO beside the same model whose backbone and neck treat padding as part of
the image. Both have the same random weights and run in turn, one image without padding at a time.
Times are CPU seconds of the process, on one thread unless told otherwise.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import cpu_name, today
from bundle.manifest import INPUT_SPECS, Bundle, ClassInfo, Manifest, output_specs
from engines.cpu.openvino_engine import OpenVinoEngine
from export.bundle_writer import smallest_side
from export.graph.trace import export_graphs, write_graphs
from model.config import TrainConfig
from model.configs import CONFIGS
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel
from model.network.padding import halved_masks
from model.network.pyramid import Pyramid, build_pyramid

SIZES = ((800, 1066), (480, 640))


class Unmasked(DeformableDetr):
    """The same model, but padding is not set to zero, and group norm counts it."""

    def _features(self, images: Tensor, padding_mask: Tensor) -> tuple[list[Tensor], Pyramid]:
        num_levels = self.config.num_levels
        masks = halved_masks(padding_mask, 2 + num_levels)
        features = self._project(self.backbone(images), [None] * num_levels)
        return features, build_pyramid(masks[2:])


@contextmanager
def open_both(config: TrainConfig, threads: int) -> Iterator[dict[str, OpenVinoEngine]]:
    """The engines of the model as it is served, and without masks."""
    torch.manual_seed(0)
    masked, unmasked = DeformableDetr(config.model), Unmasked(config.model)
    unmasked.load_state_dict(masked.state_dict())
    with ExitStack() as stack:
        engines = {}
        for name, model in (("masked", masked), ("unmasked", unmasked)):
            directory = Path(stack.enter_context(TemporaryDirectory(prefix=f"{name}-")))
            print(f"tracing the {name} model", file=sys.stderr, flush=True)
            bundle = _bundle(config, model, directory)
            engine = OpenVinoEngine(bundle, threads=threads)
            engines[name] = stack.enter_context(closing(engine))
        yield engines


def _bundle(config: TrainConfig, model: DeformableDetr, directory: Path) -> Bundle:
    wrapped = DetectionModel(model, config.preprocess).eval()
    graphs = export_graphs(wrapped, min_side=smallest_side(config.model))
    manifest = Manifest(
        name=directory.name,
        variant=config.model.variant.value,
        graphs=write_graphs(graphs, directory),
        inputs=INPUT_SPECS,
        outputs=output_specs(config.model.num_detections),
        preprocess=config.preprocess,
        classes=tuple(ClassInfo(id=i, name=f"class {i}") for i in range(config.model.num_classes)),
        num_detections=config.model.num_detections,
        max_batch_size=1,
    )
    return Bundle(directory, manifest)


def measure(
    engines: dict[str, OpenVinoEngine], size: tuple[int, int], *, rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of every run, after one that is not counted; the order changes every round."""
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    padding_mask = np.zeros((1, *size), bool)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for number in range(rounds + 1):
        for name in names:
            start = time.process_time()
            engines[name].run(images, padding_mask)
            if number:
                seconds[name].append(time.process_time() - start)
        names.reverse()
    return seconds


def print_row(size: tuple[int, int], seconds: dict[str, list[float]]) -> None:
    """Medians, and the ratio of every pair of neighbouring runs by its quartiles."""
    ratios = [a / b for a, b in zip(seconds["masked"], seconds["unmasked"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    cells = [f"{size[0]}x{size[1]}"]
    cells += [f"{statistics.median(seconds[name]):.3f}" for name in ("masked", "unmasked")]
    cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_masks", description=__doc__)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    config = CONFIGS[args.config]()
    with open_both(config, args.threads) as engines:
        info = engines["masked"].info
        print(
            f"{today()}: {cpu_name()}, threads {args.threads}, load {os.getloadavg()[0]:.1f}; "
            f"{args.config}, {info.precision}, {info.graph} graph, OpenVINO {version('openvino')}"
        )
        print("\n| image | masked, CPU-s | unmasked, CPU-s | ratio, median (quartiles) |")
        print("|---|---|---|---|")
        for size in SIZES:
            print_row(size, measure(engines, size, rounds=args.rounds))


if __name__ == "__main__":
    main()
