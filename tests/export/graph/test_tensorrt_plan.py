"""Plans on a machine without a GPU: made by fakes, and built by TensorRT-RTX but never run."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir
import pytest

from bundle.manifest import Bundle, Manifest
from bundle.preprocess import Preprocess
from bundle.tensorrt_plan import BatchShape, default_profiles, max_batch
from engines.load import open_engine
from export.__main__ import main
from export.graph.half_precision import write_half
from export.graph.tensorrt_plan import choose_profiles, find_planner
from export.precisions import Data, Materials, require_possible
from export.recipe import make_bundle, write_bundle
from model.config import Variant
from model.data.digits import DigitsDataset
from service.detector import bucket
from tests.export.judge.test_agreement import scale_weights
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT
from tests.fake_tensorrt_builder import Parser
from tests.plugins.emulated import needs_compiler
from tests.plugins.tensorrt_plugin import plugin
from tests.tensorrt_rtx import run_with_tensorrt_rtx

DEMO = Path(__file__).parents[3] / "bundles" / "demo"
PUBLISHED = Preprocess(short_side=800, long_side=1333, min_side=128)


class ParserThatKnowsTheOp(Parser):
    """Takes a graph with MSDeformAttn nodes for the one in standard operators beside it."""

    def parse_from_file(self, model):
        return super().parse_from_file(str(Path(model).with_name("model.onnx")))


class FakeWithOp(FakeTensorRT):
    """TensorRT that can run graphs with MSDeformAttn nodes, in float32."""

    def OnnxParser(self, network, log):  # noqa: N802
        return ParserThatKnowsTheOp(network)


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """TensorRT, a GPU and the library of the op, as far as export can tell."""
    cuda = FakeCuda()
    fake = FakeWithOp(cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    libraries = tmp_path / "plugins"
    libraries.mkdir()
    (libraries / "libms_deform_attn_tensorrt.so").write_text("MSDeformAttn")
    monkeypatch.setattr("plugins.library.FOLDER", libraries)
    monkeypatch.setattr(
        "export.graph.tensorrt_plan.TIMING_CACHE", tmp_path / "timings" / "timing.cache"
    )
    yield fake
    assert fake.misuses == []


@pytest.fixture
def demo(tmp_path):
    """A copy of the demo bundle, float32."""
    directory = tmp_path / "demo"
    return Path(shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache")))


@pytest.fixture
def small(exported):
    """A small model, exported before there are any fakes, which its exporter would find."""
    return exported(Variant.BASE)


# --- shapes


def test_one_shape_takes_every_batch_up_to_it():
    (profile,) = choose_profiles(["8x1333x1333"], PUBLISHED)

    assert profile.min == BatchShape(1, 128, 128)
    assert profile.opt == profile.max == BatchShape(8, 1333, 1333)


def test_three_shapes_are_the_smallest_the_usual_and_the_largest():
    profiles = choose_profiles(["1x256x256:1x800x1067:4x800x1333", "2x1333x800"], PUBLISHED)

    assert profiles[0].min == BatchShape(1, 256, 256)
    assert profiles[0].opt == BatchShape(1, 800, 1067)
    assert profiles[0].max == BatchShape(4, 800, 1333)
    assert max_batch(profiles, PUBLISHED) == 2


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["800x1333"], "expected shapes as BATCHxHEIGHTxWIDTH, or .*, got '800x1333'"),
        (["1x9x9:8x1333x1333"], "expected shapes as BATCHxHEIGHTxWIDTH"),
        (["1x9x9:2x8x9:8x1333x1333"], "expected shapes that rise from a batch of 1"),
        (["2x9x9:2x9x9:8x1333x1333"], "expected shapes that rise from a batch of 1"),
        (["8x800x1333"], "take images of 800x1333 and of 1333x800, got 8x800x1333"),
    ],
)
def test_shapes_that_do_not_do_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        choose_profiles(shapes, PUBLISHED)


@pytest.mark.parametrize(("width", "height"), [(4, 3), (3, 2), (16, 9), (1, 1), (9, 16), (1, 8)])
def test_a_full_batch_of_every_bucket_fits_a_default_profile(width, height):
    step_px = -(-PUBLISHED.short_side // 3)
    scale = min(800 / min(width, height), 1333 / max(width, height))
    rows, columns, is_portrait = bucket(int(height * scale), int(width * scale), short_side=800)

    largest = BatchShape(
        8,
        min(rows * step_px, 1333 if is_portrait else 800),
        min(columns * step_px, 800 if is_portrait else 1333),
    )

    assert any(largest.fits(profile.max) for profile in default_profiles(PUBLISHED))


# --- what has to be there


def test_without_tensorrt_one_line_says_what_is_missing(checkpoint_of, tmp_path, capsys):
    checkpoint = checkpoint_of(Variant.BASE)

    status = main([str(checkpoint), "--out", str(tmp_path / "out"), "--runtime", "tensorrt"])

    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("a TensorRT plan is built on a machine with TensorRT and the kind")
    assert "install the Python package tensorrt" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_nothing_is_started(trt, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)

    with pytest.raises(ValueError, match=r"the kind of GPU that will run it: .*cuda-bindings"):
        find_planner([], PUBLISHED)


def test_without_the_plugin_nothing_is_started(trt, tmp_path):
    (tmp_path / "plugins" / "libms_deform_attn_tensorrt.so").unlink()

    with pytest.raises(ValueError, match=r"no plugin library for TensorRT .*; run `make plugins`"):
        find_planner([], PUBLISHED)


def test_shapes_are_of_use_with_tensorrt_only(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "x"), "--out", str(tmp_path / "out"), "--shapes", "8x800x800"])

    assert "SHAPES= (--shapes) needs RUNTIME=tensorrt" in capsys.readouterr().err


def test_fp8_is_refused_where_it_cannot_be_computed(trt):
    planner = find_planner([], PUBLISHED)

    with pytest.raises(ValueError, match="only TensorRT computes in fp8; export with RUNTIME=tens"):
        require_possible("fp8", None)
    with pytest.raises(ValueError, match=r"capability 8\.9 or newer, NVIDIA Fake has 8\.6; export"):
        require_possible("fp8", planner)
    trt.cuda.minor = 9
    require_possible("fp8", planner)


# --- the plan in the bundle


@pytest.mark.slow
def test_a_plan_is_verified_against_the_model(small, trt, tmp_path):
    out = tmp_path / "bundle"
    planner = find_planner([], small.manifest.preprocess)
    materials = Materials(
        Bundle(small.directory, small.manifest), planner=planner, model=small.model
    )

    manifest = make_bundle(materials, out, precision="fp32", report={}).manifest

    report = json.loads((out / "report.json").read_text())
    assert [comparison["passed"] for comparison in report["plan"]] == [True] * 4
    assert manifest.files.keys() >= {"model.plan"}
    assert manifest.tensorrt is not None
    assert manifest.tensorrt.graph == "plugin"
    assert manifest.tensorrt.profiles == default_profiles(manifest.preprocess)
    assert manifest.tensorrt.fingerprint.gpu == "NVIDIA Fake"
    (config,) = trt.builds
    assert config.plugins_to_serialize == []
    assert (tmp_path / "timings" / "timing.cache").read_bytes() == b"timings"


@pytest.mark.slow
def test_a_plan_that_differs_from_the_model_is_refused(small, trt, tmp_path):
    directory = Path(shutil.copytree(small.directory, tmp_path / "bundle"))
    scale_weights(directory, "detector.backbone.conv1.weight", 1.1)
    planner = find_planner([], small.manifest.preprocess)
    materials = Materials(Bundle.load(directory), planner=planner, model=small.model)

    with pytest.raises(ValueError, match=r"does not do what .*the bundle was not written"):
        make_bundle(materials, tmp_path / "out", precision="fp32", report={})

    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_float16_bundle_is_served_from_its_plan(trt, demo, tmp_path):
    exact, out = Bundle.load(demo), tmp_path / "fp16"
    planner = find_planner(["4x224x224"], exact.manifest.preprocess)

    make_bundle(Materials(exact, planner=planner), out, precision="fp16", report={})

    bundle = Bundle.load(out)
    engine, manifest = open_engine(bundle), bundle.manifest
    engine.close()
    assert engine.info.runtime == "tensorrt"
    assert engine.info.precision == "fp16"
    assert manifest.tensorrt is not None
    assert engine.info.graph == manifest.tensorrt.graph == "tensorrt"
    assert engine.max_batch_size == 4
    assert manifest.files.keys() >= {"model.plan", "model.tensorrt.onnx", "weights.tensorrt.bin"}
    report = json.loads((out / "report.json").read_text())
    assert report["agreement"]["plan"]["share"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "float_type"), [("int8", "fp16"), ("fp8", "fp16"), ("bf16", "bf16")]
)
def test_ap_is_that_of_the_plan(trt, demo, tmp_path, precision, float_type):
    trt.cuda.major, trt.cuda.minor = 9, 0
    exact = Bundle.load(demo)
    planner = find_planner([], exact.manifest.preprocess)
    data = Data(DigitsDataset("train", num_images=8), DigitsDataset("val", num_images=20))
    directory = tmp_path / precision
    materials = Materials(exact, data, planner)

    manifest = make_bundle(materials, directory, precision=precision, report={}).manifest

    report = json.loads((directory / "report.json").read_text())["ap"]
    assert report["fp32"]["engine"]["runtime"] != "tensorrt"
    assert report[precision]["engine"]["runtime"] == "tensorrt"
    assert report[precision]["engine"]["precision"] == precision
    assert report[precision]["engine"]["float_type"] == float_type
    assert manifest.precision == precision
    assert manifest.tensorrt is not None
    assert manifest.tensorrt.graph == "tensorrt"


# --- whole models in TensorRT-RTX, whose builder needs no GPU

# Builds a plan of every graph given for the GPU given, in one process: loading takes a second.
PROGRAM = """
import json, sys
from pathlib import Path
import tensorrt_rtx as trt
from bundle.manifest import Bundle, Manifest
from bundle.tensorrt_plan import ShapeProfile
from engines.gpu.tensorrt_builder import BuildOptions, build_plan

bundle, library, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
inputs = Manifest.load(bundle).inputs
profile = ShapeProfile(min=(1, 64, 64), opt=(2, 96, 128), max=(4, 160, 224))
for graph, target in jobs:
    options = BuildOptions((profile,), library, target=target)
    print("built", len(build_plan(trt, Path(graph), inputs=inputs, options=options)))
"""
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="no tensorrt-rtx")

# Form, precision and compute capability of the plan of every variant; each takes 12 CPU seconds.
BUILDS = {
    Variant.BASE: ("plugin", "fp32", "8.6"),
    Variant.REFINE: ("plugin", "bf16", "12.0"),
    Variant.TWO_STAGE: ("standard", "fp16", "12.0"),
}


def build(directory, scratch, builds):
    """Sizes in bytes of the plans of a bundle's graphs, which are written to `scratch` first."""
    manifest = Manifest.load(directory)
    jobs = []
    for form, precision, target in builds:
        path = directory / manifest.graphs[form]
        if precision != "fp32":
            model = ir.load(path)
            write_half(model, precision)
            path = scratch / f"{form}.{precision}.onnx"
            ir.save(model, path, external_data=f"{path.name}.bin")
        jobs.append((str(path), target))
    printed = run_with_tensorrt_rtx(
        PROGRAM, scratch, str(directory), str(plugin()), json.dumps(jobs)
    )
    return [int(line.split()[1]) for line in printed.splitlines()]


@needs_rtx
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("variant", BUILDS)
def test_the_whole_model_is_built(exported, tmp_path, variant):
    directory = exported(variant).directory

    (size,) = build(directory, tmp_path, [BUILDS[variant]])

    assert size > (directory / "weights.bin").stat().st_size


@needs_rtx
@needs_compiler
@pytest.mark.slow
def test_int8_and_fp8_are_built_with_float16_around_them(demo, tmp_path):
    materials = Materials(Bundle.load(demo), Data(DigitsDataset("train", num_images=4)))
    for precision in ("int8", "fp8"):
        (tmp_path / precision).mkdir()
        write_bundle(materials, tmp_path / precision, precision=precision).save()

    sizes = build(tmp_path / "int8", tmp_path, [("plugin", "fp16", "8.6")])
    sizes += build(tmp_path / "fp8", tmp_path, [("tensorrt", "fp32", "12.0")])

    assert min(sizes) > 1_000_000
