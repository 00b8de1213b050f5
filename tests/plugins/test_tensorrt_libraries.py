"""The plugin library in TensorRT's own libraries, as far as those run without a GPU.

The library is the one that serves, where nvcc is there, else the one with emulated kernels: what
happens to it here needs no code for a GPU. Everything runs in processes of its own, as a fault in
TensorRT ends the process.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from plugins import library
from plugins.build import tensorrt_headers
from tests.plugins.emulated import needs_compiler
from tests.plugins.tensorrt_plugin import plugin
from tests.tensorrt_rtx import run_with_tensorrt_rtx

pytestmark = needs_compiler
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="no tensorrt-rtx")

DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
GPUS = ("SM86", "SM120")

LEAN = """
import json, sys
import tensorrt_lean as trt
registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[1])
creator = registry.get_creator("MSDeformAttn", "1", "")
fields = trt.PluginFieldCollection([])
plugin = creator.create_plugin("attention", fields, trt.TensorRTPhase.RUNTIME)
registry.deregister_library(handle)
left = [creator.name for creator in registry.all_creators]
print(json.dumps([trt.__version__.split(".")[0], plugin is not None, "MSDeformAttn" in left]))
"""

# Builds every graph of a list for every GPU of a list, embedding the plugin where told.
RTX = """
import json, os, sys
import tensorrt_rtx as trt
os.dup2(1, 2)  # what the plugin says goes with what this prints
library, graphs, gpus, ranges, embed = map(json.loads, sys.argv[1:])
logger = trt.Logger(trt.Logger.ERROR)
trt.get_plugin_registry().load_library(library)
builder = trt.Builder(logger)
for graph in graphs:
    for gpu in gpus:
        network = builder.create_network()
        parser = trt.OnnxParser(network, logger)
        size = None
        if parser.parse_from_file(graph):
            config = builder.create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, gpu), 0)
            config.plugins_to_serialize = [library] if embed else []
            profile = builder.create_optimization_profile()
            for name, shapes in ranges.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
            plan = builder.build_serialized_network(network, config)
            output = tuple(network.get_output(0).shape), str(network.get_output(0).dtype)
            size = plan and plan.nbytes
            print("built", json.dumps([graph, gpu, size, *output]), flush=True)
"""


def write_graph(path: Path, value_type: int, **changed: Any) -> str:
    """A graph of one node, dynamic in batch, tokens and queries; inputs as `changed` has them."""
    inputs = {
        "value": (value_type, ["B", "S", 8, 32]),
        "spatial_shapes": (TensorProto.INT32, [4, 2]),
        "reference_points": (TensorProto.FLOAT, ["B", "Q", 4, 2]),
        "sampling_offsets": (value_type, ["B", "Q", 8, 4, 4, 2]),
        "attention_logits": (value_type, ["B", "Q", 8, 4, 4]),
    } | changed
    node = helper.make_node("MSDeformAttn", list(inputs), ["output"], domain="detr")
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()],
        [helper.make_tensor_value_info("output", value_type, ["B", "Q", 256])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("detr", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return str(path)


def ranges(least: list[int], usual: list[int], most: list[int]) -> dict[str, list[list[int]]]:
    """Shapes of every dynamic input for a smallest, usual and largest (B, S, Q)."""
    sizes = (least, usual, most)
    return {
        "value": [[b, s, 8, 32] for b, s, _ in sizes],
        "reference_points": [[b, q, 4, 2] for b, _, q in sizes],
        "sampling_offsets": [[b, q, 8, 4, 4, 2] for b, _, q in sizes],
        "attention_logits": [[b, q, 8, 4, 4] for b, _, q in sizes],
    }


ENCODER = ranges([1, 85, 85], [2, 1360, 1360], [8, 22223, 22223])


def run_rtx(
    directory: Path, graphs: list[str], gpus: tuple[str, ...] = GPUS, *, embed: bool = False
) -> str:
    """What TensorRT-RTX and the plugin say while engines of the graphs are built."""
    arguments = (str(plugin()), graphs, gpus, ENCODER, embed)
    return run_with_tensorrt_rtx(RTX, directory, *map(json.dumps, arguments))


def built(said: str) -> list[list[Any]]:
    """Of every engine: graph, GPU, bytes or None, shape and type of the output."""
    return [
        json.loads(line.removeprefix("built "))
        for line in said.splitlines()
        if line.startswith("built ")
    ]


@needs_rtx
def test_engines_of_one_node_are_built_in_every_type_for_two_gpus(tmp_path: Path) -> None:
    graphs = [write_graph(tmp_path / f"{name}.onnx", number) for name, number in DTYPES.items()]

    engines = built(run_rtx(tmp_path, graphs))

    assert [(Path(graph).stem, gpu) for graph, gpu, *_ in engines] == [
        (name, gpu) for name in DTYPES for gpu in GPUS
    ]
    assert all(size for _, _, size, *_ in engines)
    assert {tuple(shape) for *_, shape, _ in engines} == {(-1, -1, 256)}
    assert [dtype for *_, dtype in engines[::2]] == [
        "DataType.FLOAT",
        "DataType.HALF",
        "DataType.BF16",
    ]


@needs_rtx
def test_an_engine_carries_the_plugin_where_it_is_embedded(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.onnx", TensorProto.FLOAT16)

    ((*_, alone, _, _),) = built(run_rtx(tmp_path, [graph], ("SM86",)))
    ((*_, with_plugin, _, _),) = built(run_rtx(tmp_path, [graph], ("SM86",), embed=True))

    assert with_plugin - alone >= plugin().stat().st_size


@needs_rtx
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"attention_logits": (TensorProto.FLOAT, ["B", "Q", 8, 16])},
            "expected attention_logits (B, Q, M, L, P), got (?, ?, 8, 16)",
        ),
        (
            {"attention_logits": (TensorProto.FLOAT, ["B", "Q", 8, 4, 2])},
            "inputs disagree on P, the points: sampling_offsets (?, ?, 8, 4, 4, 2), "
            "attention_logits (?, ?, 8, 4, 2)",
        ),
        (
            {"reference_points": (TensorProto.FLOAT, ["B", "Q", 4, 3])},
            "unsupported: reference points that are neither 2 nor 4 wide: ",
        ),
        (
            {"spatial_shapes": (TensorProto.INT32, [65, 2])},
            "inputs disagree on L, the levels: spatial_shapes (65, 2), ",
        ),
        (
            {"reference_points": (TensorProto.FLOAT16, ["B", "Q", 4, 2])},
            "value is float32, reference_points is float16",
        ),
        (
            {"spatial_shapes": (TensorProto.INT64, [4, 2])},
            "value is float32, spatial_shapes is int64",
        ),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    graph = write_graph(tmp_path / "graph.onnx", TensorProto.FLOAT, **changed)

    said = run_rtx(tmp_path, [graph], ("SM86",))

    assert built(said) == []
    assert message in said


@pytest.mark.skipif(find_spec("tensorrt_lean") is None, reason="no tensorrt-lean")
def test_tensorrt_11_registers_the_library_and_lets_it_go(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LEAN, str(plugin())], capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["11", True, False]


def test_headers_are_taken_from_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))

    assert tensorrt_headers() == tmp_path


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_library_needs_neither_tensorrt_nor_cuda_to_load() -> None:
    path = library.find(library.TENSORRT_PLUGIN)
    assert path is not None, "run make plugins"
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    )
    functions = [line.split()[2] for line in symbols.stdout.splitlines() if " T " in line]

    assert "nvinfer" not in dynamic.stdout
    assert "cuda" not in dynamic.stdout
    assert functions == ["getCreators", "setLoggerFinder"]
