"""What it costs to make answers independent of the batch: python -m benchmarks.bench_masks.

Runs a variant in OpenVINO beside the same model whose backbone and neck treat padding as part of
the image. Both have the same random weights and run in turn, one image without padding at a time,
in float32, compiled as the engine compiles them. Two measures:

- CPU seconds of the process. Their ratio swings by 3% between runs, more than the masks cost.
- OpenVINO's own time of every node: the sum of the medians of all nodes but convolutions, matrix
  products and the attention operator, which are the same in both graphs. The cost is the
  difference of the two sums, relative to all nodes of the model without masks.
"""

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from benchmarks.machine import cpu_name, today
from bundle.layout import IMAGES, PADDING_MASK, PLUGIN_FORM
from bundle.manifest import INPUT_SPECS, Bundle, ClassInfo, Manifest, output_specs
from engines.cpu.openvino_graph import prepare_graph
from export.bundle_writer import smallest_side
from export.graph.trace import export_graphs, write_graphs
from model.config import TrainConfig
from model.configs import CONFIGS
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel
from model.network.padding import halved_masks
from model.network.pyramid import Pyramid, build_pyramid
from plugins import library

SIZES = ((800, 1066), (480, 640))
# Types of nodes that are the same in both graphs; OpenVINO calls ours Reference.
SAME_TYPES = ("Convolution", "FullyConnected", "Reference")


class Unmasked(DeformableDetr):
    """The same model, but padding is not set to zero, and group norm counts it."""

    def _features(self, images: Tensor, padding_mask: Tensor) -> tuple[list[Tensor], Pyramid]:
        num_levels = self.config.num_levels
        masks = halved_masks(padding_mask, 2 + num_levels)
        features = self._project(self.backbone(images), [None] * num_levels)
        return features, build_pyramid(masks[2:])


class Run(NamedTuple):
    """One run: CPU seconds of the process, and milliseconds of every node, by (type, name)."""

    cpu_s: float
    node_ms: dict[tuple[str, str], float]


class Profiled:
    """A compiled model whose runs are measured.

    For every node, OpenVINO reports the mean over all runs so far, of whatever size. From one mean
    to the next follows what the last run took.
    """

    def __init__(self, request: ov.InferRequest) -> None:
        self.request = request
        self._num_runs = 0
        self._total_ms: dict[tuple[str, str], float] = {}

    def run(self, inputs: dict[str, np.ndarray[Any, Any]]) -> Run:
        """Run the model once."""
        start = time.process_time()
        self.request.infer(inputs, share_inputs=True)
        cpu_s = time.process_time() - start
        self._num_runs += 1
        before, self._total_ms = (
            self._total_ms,
            {
                (node.node_type, node.node_name): node.real_time.total_seconds()
                * 1e3
                * self._num_runs
                for node in self.request.get_profiling_info()
            },
        )
        return Run(cpu_s, {key: ms - before.get(key, 0) for key, ms in self._total_ms.items()})


def compile_both(config: TrainConfig, threads: int) -> dict[str, Profiled]:
    """The model as it is served, and without masks.

    Raises:
        ValueError: they differ in the nodes that are taken for the same.
    """
    torch.manual_seed(0)
    masked, unmasked = DeformableDetr(config.model), Unmasked(config.model)
    unmasked.load_state_dict(masked.state_dict())
    models = {}
    for name, model in (("masked", masked), ("unmasked", unmasked)):
        print(f"tracing the {name} model", file=sys.stderr, flush=True)
        with TemporaryDirectory(prefix=f"{name}-") as directory:
            request = _compile(_bundle(config, model, Path(directory)), threads)
        models[name] = Profiled(request)
    one, other = (_same_nodes(model.request) for model in models.values())
    if one != other:
        raise ValueError(f"the graphs differ in nodes left out of the comparison: {one - other}, "
                         f"{other - one}")  # fmt: skip
    return models


def _compile(bundle: Bundle, threads: int) -> ov.InferRequest:
    core = ov.Core()
    core.add_extension(str(library.find(library.openvino_extension())))
    model = core.read_model(bundle.graph(PLUGIN_FORM))
    prepare_graph(model, "f32")
    properties = {
        "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    return core.compile_model(model, "CPU", properties).create_infer_request()


def _same_nodes(request: ov.InferRequest) -> Counter[str]:
    """How many nodes there are of every type that is the same in both graphs."""
    nodes = request.get_compiled_model().get_runtime_model().get_ordered_ops()
    types = (str(node.get_rt_info()["layerType"].astype(str)) for node in nodes)
    return Counter(kind for kind in types if kind in SAME_TYPES)


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
    models: dict[str, Profiled], size: tuple[int, int], *, rounds: int
) -> dict[str, list[Run]]:
    """Every run, after one that is not counted; the order changes every round."""
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    inputs = {IMAGES: images, PADDING_MASK: np.zeros((1, *size), bool)}
    runs: dict[str, list[Run]] = {name: [] for name in models}
    names = list(models)
    for number in range(rounds + 1):
        for name in names:
            run = models[name].run(inputs)
            if number:
                runs[name].append(run)
        names.reverse()
    return runs


def print_row(size: tuple[int, int], runs: dict[str, list[Run]]) -> None:
    """Medians of both measures, and the quartiles of the ratio of neighbouring runs."""
    masked, unmasked = runs["masked"], runs["unmasked"]
    ratios = [a.cpu_s / b.cpu_s for a, b in zip(masked, unmasked, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    with_masks, without, whole = _others_ms(masked), _others_ms(unmasked), _nodes_ms(unmasked)
    cells = [f"{size[0]}x{size[1]}"]
    cells += [f"{statistics.median(run.cpu_s for run in one):.3f}" for one in (masked, unmasked)]
    cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    cells += [f"{with_masks:.1f}", f"{without:.1f}", f"{whole:.1f}"]
    cells.append(f"{(with_masks - without) / whole:.2%}")
    print(f"| {' | '.join(cells)} |", flush=True)


def _others_ms(runs: list[Run]) -> float:
    """The nodes that may differ between the graphs."""
    return _nodes_ms(runs, left_out=SAME_TYPES)


def _nodes_ms(runs: list[Run], left_out: Collection[str] = ()) -> float:
    """The sum of the medians of the nodes."""
    nodes = [node for node in runs[0].node_ms if node[0] not in left_out]
    return sum(statistics.median(run.node_ms[node] for run in runs) for node in nodes)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_masks", description=__doc__)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    config = CONFIGS[args.config]()
    models = compile_both(config, args.threads)
    print(
        f"{today()}: {cpu_name()}, threads {args.threads}, load {os.getloadavg()[0]:.1f}; "
        f"{args.config}, rounds {args.rounds}, OpenVINO {version('openvino')}"
    )
    print(
        "\n| image | masked, CPU-s | unmasked, CPU-s | ratio, median (quartiles) | masked, other "
        "nodes, ms | unmasked, other nodes, ms | unmasked, all nodes, ms | cost |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        print_row(size, measure(models, size, rounds=args.rounds))


if __name__ == "__main__":
    main()
