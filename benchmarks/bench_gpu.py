"""Milliseconds of the operator and of whole models on a GPU: python -m benchmarks.bench_gpu.

Writes tables to benchmarks/results/DATE-gpu.md: for calls of the operator as in the encoder and in
the decoder, and for full-size models with random weights, on one image and on --batch images.
Everything is in GPU memory, and contestants take turns. A turn is --launches launches between two
CUDA events; a figure is the median of --rounds turns, with the least and the most.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from benchmarks.bench_op import CALLS, Call
from benchmarks.one_node import Gpu, find_gpu, plan_of_node
from bundle.atomic import write_atomically
from bundle.layout import INPUTS, OPERATOR, PLUGIN_FORM, STANDARD_FORM
from bundle.manifest import INPUT_SPECS
from bundle.tensorrt_plan import BatchShape, ShapeProfile
from engines.gpu.tensorrt_builder import BuildOptions, build_plan
from engines.gpu.tensorrt_runtime import log_of, require
from export.bundle_writer import smallest_side
from export.graph.half_precision import write_half
from export.graph.trace import export_graphs, write_graphs
from model.configs import get_config
from model.network.deformable_detr import DeformableDetr
from model.network.inference import DetectionModel
from model.network.ops.ms_deform_attn import ms_deform_attn
from model.network.ops.reference import sampling_locations

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("base", "refine", "two_stage")
HEIGHT, WIDTH = 800, 1066
NOTES = """The operator: MSDeformAttn and PyTorch receive offsets and logits, and compute locations
and softmax themselves. NVIDIA's plugin receives locations and weights, so its row does not count
their computation; the row below it is PyTorch's time for that alone.

Models: from uint8 pixels to detections, in GPU memory; copies between host and GPU are not
counted. MSDeformAttn and GridSample are the two forms of the graph."""

Contestants = dict[str, Callable[[], object]]


class Runner:
    """A plan with its tensors in GPU memory; a call launches it in torch's stream."""

    def __init__(self, gpu: Gpu, plan: bytes, *, inputs: Mapping[str, Tensor]) -> None:
        runtime = gpu.trt.Runtime(log_of(gpu.trt))
        self._trt = gpu.trt
        self._engine = require(
            gpu.trt, runtime.deserialize_cuda_engine(plan), call="deserialisation"
        )
        context = self._engine.create_execution_context()
        self._context = require(gpu.trt, context, call="create_execution_context")
        self.tensors = dict(inputs)
        for name, tensor in inputs.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
        for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors)):
            if name not in inputs:
                dtype = getattr(torch, _torch_name(self._engine.get_tensor_dtype(name).name))
                shape = tuple(self._context.get_tensor_shape(name))
                self.tensors[name] = torch.empty(shape, dtype=dtype, device="cuda")
            address = self.tensors[name].data_ptr()
            require(gpu.trt, self._context.set_tensor_address(name, address), call=name)

    def __call__(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        require(self._trt, self._context.execute_async_v3(stream), call="execute_async_v3")


def _torch_name(name: str) -> str:
    return {"HALF": "float16", "FLOAT": "float32", "BF16": "bfloat16"}.get(name, name.lower())


def on_gpu(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the GPU."""
    return {name: tensor.contiguous().cuda() for name, tensor in inputs.items()}


def op_contestants(gpu: Gpu, call: Call, *, dtype: torch.dtype, scratch: Path) -> Contestants:
    """Everything that computes the operator in a type."""
    value, shapes, points, offsets, logits = call
    ours = on_gpu(
        {
            "value": value.to(dtype),
            "spatial_shapes": torch.tensor(shapes, dtype=torch.int32),
            "reference_points": points,
            "sampling_offsets": offsets.to(dtype),
            "attention_logits": logits.to(dtype),
        }
    )
    batch, num_queries, num_heads = offsets.shape[:3]
    output_shape = (batch, num_queries, num_heads * value.shape[-1])
    plan = plan_of_node(gpu, ours, output_shape=output_shape, directory=scratch)
    found: Contestants = {OPERATOR: Runner(gpu, plan, inputs=ours)}
    if dtype != torch.bfloat16:  # NVIDIA's plugin does not take it
        found |= _nvidia_contestants(gpu, ours, shapes, scratch)
    others = (ours["reference_points"], ours["sampling_offsets"], ours["attention_logits"])

    def reference() -> Tensor:
        return ms_deform_attn(ours["value"], shapes, *others, backend="reference")

    found["PyTorch, eager"] = reference
    found["PyTorch, torch.compile"] = torch.compile(reference)
    return found


def _nvidia_contestants(
    gpu: Gpu, ours: Mapping[str, Tensor], shapes: Sequence[tuple[int, int]], scratch: Path
) -> Contestants:
    """NVIDIA's plugin for the same call, and what has to be computed before it."""
    points, offsets, logits = (
        ours[name] for name in ("reference_points", "sampling_offsets", "attention_logits")
    )

    def prepared() -> tuple[Tensor, Tensor]:
        locations = sampling_locations(shapes, points, offsets).to(offsets.dtype)
        return locations, logits.flatten(-2).softmax(-1).view_as(logits)

    locations, weights = prepared()
    starts = torch.tensor(shapes).prod(1).cumsum(0)
    theirs = on_gpu(
        {
            "value": ours["value"],
            "spatial_shapes": ours["spatial_shapes"],
            "level_start_index": torch.tensor([0, *starts[:-1]], dtype=torch.int32),
            "sampling_locations": locations,
            "attention_weights": weights,
        }
    )
    name = "MultiscaleDeformableAttnPlugin_TRT"
    plan = plan_of_node(
        gpu,
        theirs,
        output_shape=(*offsets.shape[:3], ours["value"].shape[-1]),
        directory=scratch,
        operator=name,
        plugin_version=_version(gpu, name),
    )
    return {
        "NVIDIA's plugin, without softmax and locations": Runner(gpu, plan, inputs=theirs),
        "softmax and locations alone, PyTorch": prepared,
    }


def _version(gpu: Gpu, name: str) -> str:
    """The newest version of one of NVIDIA's own plugins."""
    gpu.trt.init_libnvinfer_plugins(log_of(gpu.trt), "")
    creators = gpu.trt.get_plugin_registry().all_creators
    versions = [creator.plugin_version for creator in creators if creator.name == name]
    if not versions:
        raise ValueError(f"TensorRT {gpu.trt.__version__} brings no plugin {name}")
    return str(max(versions))


def make_model(variant: str, scratch: Path) -> tuple[DetectionModel, dict[str, Path]]:
    """A model with random weights, and its graphs by the name of their row; takes minutes."""
    config = get_config(variant)
    torch.manual_seed(0)
    model = DetectionModel(DeformableDetr(config.model), config.preprocess)
    model = model.eval().requires_grad_(False)
    min_side = max(config.preprocess.min_side, smallest_side(config.model))
    files = write_graphs(export_graphs(model, min_side=min_side), scratch)
    graphs = {}
    for form, name in ((PLUGIN_FORM, OPERATOR), (STANDARD_FORM, "GridSample")):
        graphs[f"TensorRT, {name}, fp32"] = scratch / files[form]
        graph = ir.load(scratch / files[form])
        write_half(graph, "fp16")
        path = graphs[f"TensorRT, {name}, fp16"] = scratch / f"{form}.fp16.onnx"
        ir.save(graph, path, external_data=f"{path.name}.bin")
    return model, graphs


def model_contestants(
    gpu: Gpu, model: DetectionModel, *, graphs: Mapping[str, Path], batch: int
) -> Contestants:
    """Plans of the graphs, launched and as CUDA graphs, and PyTorch."""
    images = torch.randint(0, 256, (batch, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    mask = torch.zeros(batch, HEIGHT, WIDTH, dtype=torch.bool)
    inputs = on_gpu(dict(zip(INPUTS, (images, mask), strict=True)))
    shape = BatchShape(batch, HEIGHT, WIDTH)
    profile = ShapeProfile(min=BatchShape(1, HEIGHT, WIDTH), opt=shape, max=shape)
    found: Contestants = {}
    for name, path in graphs.items():
        plan = build_plan(
            gpu.trt, path, inputs=INPUT_SPECS, options=BuildOptions((profile,), gpu.plugin)
        )
        runner = found[f"{name}, launched"] = Runner(gpu, plan, inputs=inputs)
        found[f"{name}, CUDA graph"] = captured(runner)
    model.cuda()
    for name, run in (("eager", model), ("torch.compile", torch.compile(model))):
        for is_half in (False, True):
            row = f"PyTorch, {name}, {'fp16 autocast' if is_half else 'fp32'}"
            found[row] = partial(run_torch, run, tuple(inputs.values()), is_half=is_half)
    return found


def run_torch(run: Callable[..., object], inputs: tuple[Tensor, ...], *, is_half: bool) -> object:
    """A model of PyTorch."""
    with torch.autocast("cuda", torch.float16, enabled=is_half):
        return run(*inputs)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The launches of `run` as a CUDA graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@torch.inference_mode()
def measure(them: Contestants, rounds: int, *, launches: int) -> dict[str, list[float]]:
    """Milliseconds of a launch, in every round."""
    times: dict[str, list[float]] = {name: [] for name in them}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # TensorRT is slower in the default stream
        for number in range(rounds + 1):  # the first compiles and warms up
            for name, run in them.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                run()
                start.record()
                for _ in range(launches):
                    run()
                end.record()
                end.synchronize()
                if number:
                    times[name].append(start.elapsed_time(end) / launches)
    return times


def table(title: str, times: Mapping[str, list[float]], *, images: int) -> str:
    """A table with medians, spread, throughput and time relative to the first row."""
    lines = [f"## {title}\n", "| | ms, median (least - most) | per second | x first row |"]
    lines.append("|---|---|---|---|")
    first = statistics.median(next(iter(times.values())))
    for name, row in times.items():
        median = statistics.median(row)
        spread = f"{median:.3f} ({min(row):.3f} - {max(row):.3f})"
        lines.append(f"| {name} | {spread} | {1000 * images / median:.1f} | {median / first:.2f} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure everything and write the file; if that is impossible, print why and return 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu", description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: 8)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each (default: 15)")
    parser.add_argument("--launches", type=int, default=20, help="in a turn (default: 20)")
    arguments = parser.parse_args()
    try:
        gpu = find_gpu()
        if not torch.cuda.is_available():
            raise ValueError(f"torch {torch.__version__} has no CUDA; install a build that does")
    except ValueError as error:
        print(f"there is nothing to measure on: {error}", file=sys.stderr)
        return 1
    device, today = gpu.cuda.device(), date.today().isoformat()
    parts = [
        f"# On a GPU, {today}\n",
        f"{device.name}, compute capability {device.compute_capability}, TensorRT "
        f"{gpu.trt.__version__}, torch {torch.__version__}; {arguments.rounds} rounds in turn of "
        f"{arguments.launches} launches\n\n{NOTES}\n",
    ]

    def add(title: str, them: Contestants, images: int = 1) -> None:
        times = measure(them, arguments.rounds, launches=arguments.launches)
        parts.append(table(title, times, images=images))
        print(parts[-1], flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for title in list(CALLS)[:2]:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                them = op_contestants(gpu, CALLS[title](), dtype=dtype, scratch=Path(scratch))
                add(f"Operator, {title}, {str(dtype).removeprefix('torch.')}", them)
    for variant in arguments.variants:
        with tempfile.TemporaryDirectory() as scratch:
            model, graphs = make_model(variant, Path(scratch))
            for batch in (1, arguments.batch):
                them = model_contestants(gpu, model, graphs=graphs, batch=batch)
                add(f"{variant}, {batch} x {HEIGHT} x {WIDTH}", them, batch)
    path = RESULTS / f"{today}-gpu.md"
    write_atomically(path, "\n".join(parts).encode())
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
