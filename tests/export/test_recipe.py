import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import numpy_helper

from bundle.layout import WEIGHTS_FILES
from bundle.manifest import Bundle, ClassInfo, Manifest
from bundle.staging import staged
from bundle.tensorrt_plan import form_for_tensorrt
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.load import open_engine
from export import bundle_writer
from export.__main__ import main
from export.comparison import MIN_ROUNDS, measure_speeds, table
from export.graph.calibration import NUM_IMAGES
from export.judge.ap import MAX_AP_DROP, share_found_again
from export.precisions import Data, Materials, open_splits
from export.recipe import make_bundle, write_bundle
from export.several import Outcome
from model.config import Variant
from model.data.digits import CLASSES, DigitsDataset, write_coco
from model.evaluation.evaluation import evaluate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "bundles" / "demo"
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
REPORT = {"comparisons": ["exact"]}  # of the float32 bundle
OUTLIER = 2.0**13  # a power of two, so that float32 stays as it is


class StoppedImages(DigitsDataset):
    """Images whose third reading is Ctrl-C."""

    def read_image(self, index):
        if index == 2:
            raise KeyboardInterrupt
        return super().read_image(index)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def write_splits(directory):
    """A data set of few digits."""
    write_coco(DigitsDataset("train", num_images=2), directory)
    write_coco(DigitsDataset("val", num_images=4), directory)
    return directory


def evaluate_digits(engine, manifest, num_images):
    val = DigitsDataset("val", num_images=num_images)
    try:
        return evaluate(engine.run, val, preprocess=manifest.preprocess, classes=manifest.classes)
    finally:
        engine.close()


def conv_relu_conv(nodes):
    """Two convolutions with nothing but a ReLU between them."""
    for first in nodes:
        relus = [node for node in nodes if first.output[0] in node.input]
        readers = [node for node in nodes if relus and relus[0].output[0] in node.input]
        found = [node.op_type for node in (first, *relus, *readers)]
        if found == ["Conv", "Relu", "Conv"]:
            return first, readers[0]
    raise AssertionError("expected two convolutions in a row")


def add_outlier(directory):
    """Make one channel of the backbone huge, and the next convolution read it as it was."""
    manifest = Manifest.load(directory)
    for file in manifest.graphs.values():
        model = onnx.load(directory / file)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        first, second = conv_relu_conv(model.graph.node)
        for name, where, factor in (
            (first.input[1], np.s_[0], OUTLIER),
            (first.input[2], np.s_[0], OUTLIER),
            (second.input[1], np.s_[:, 0], 1 / OUTLIER),
        ):
            array = numpy_helper.to_array(weights[name]).copy()
            array[where] *= factor
            weights[name].CopyFrom(numpy_helper.from_array(array, name))
        onnx.save(model, directory / file)
    manifest.save(directory)


@pytest.fixture
def demo(tmp_path):
    """A copy of the demo bundle, float32."""
    directory = tmp_path / "fp32"
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache"))
    return Bundle.load(directory)


@pytest.fixture(scope="module")
def data():
    """The demo's validation set, and as many images to calibrate on as export takes."""
    return Data(DigitsDataset("train", num_images=NUM_IMAGES), DigitsDataset("val"))


@pytest.fixture(scope="module")
def int8(data, tmp_path_factory):
    """The demo in int8, judged."""
    folder = tmp_path_factory.mktemp("judged")
    with staged(folder / "int8") as directory:
        materials = Materials(Bundle.load(DEMO), data)
        make_bundle(materials, directory, precision="int8", report=REPORT)
    return Bundle.load(folder / "int8")


def test_int8_keeps_the_ap_of_the_demo_and_the_report_says_so(demo, int8):
    manifest = int8.manifest
    report = json.loads((int8.directory / "report.json").read_text())
    assert manifest.precision == "int8"
    assert manifest.samples == demo.manifest.samples
    assert report["ap"]["images"] == 200
    assert report["ap"]["drop"] <= MAX_AP_DROP
    assert report["ap"]["agreement"] > 0.97
    assert report["ap"]["int8"]["AP"] == manifest.metrics["AP"]
    assert report["ap"]["int8"]["engine"]["precision"] == "int8"
    assert report["ap"]["fp32"]["AP"] == pytest.approx(demo.manifest.metrics["AP"], abs=1e-3)
    assert report["comparisons"] == ["exact"]
    assert names_in(int8.directory.parent) == ["int8"]
    assert "cache" not in names_in(int8.directory)


def test_int8_is_the_same_in_every_engine_and_form(int8, tmp_path):
    made = Bundle.load(Path(shutil.copytree(int8.directory, tmp_path / "int8")))

    metrics = [
        evaluate_digits(engine, made.manifest, num_images=60)
        for engine in (OnnxRuntimeEngine(made), open_engine(made, engine="openvino"))
    ]

    one, other = metrics
    assert (share_found_again(one.results, other.results) or 0) > 0.97
    assert (share_found_again(other.results, one.results) or 0) > 0.97
    assert one.numbers["AP"] == pytest.approx(other.numbers["AP"], abs=0.01)


def test_int8_weights_are_small_and_kept_once(demo, tmp_path):
    few = DigitsDataset("train", num_images=3)

    made = write_bundle(Materials(demo, Data(few)), tmp_path / "int8", precision="int8")

    folders = demo.directory, made.directory
    sizes = [(folder / "weights.bin").stat().st_size for folder in folders]
    assert sizes[1] < 0.55 * sizes[0]


def test_a_model_that_int8_breaks_is_refused_with_both_aps(demo, tmp_path):
    add_outlier(demo.directory)
    few = Data(DigitsDataset("train", num_images=8), DigitsDataset("val", num_images=40))

    with pytest.raises(ValueError, match="PRECISION=bf16 or fp32"), staged(tmp_path / "o") as out:
        make_bundle(Materials(Bundle.load(demo.directory), few), out, precision="int8", report={})

    assert names_in(tmp_path) == ["fp32"]


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")
def test_bf16_keeps_the_ap_of_the_demo(demo, data, tmp_path):
    made = make_bundle(Materials(demo, data), tmp_path / "bf16", precision="bf16", report={})

    report = json.loads((tmp_path / "bf16" / "report.json").read_text())
    assert made.manifest.precision == "bf16"
    assert report["ap"]["drop"] <= MAX_AP_DROP
    assert report["ap"]["bf16"]["engine"]["precision"] == "bf16"


def test_a_half_bundle_serves_float32_on_a_cpu_and_holds_another_graph(demo, tmp_path):
    out = tmp_path / "fp16"

    made = make_bundle(Materials(demo), out, precision="fp16", report=REPORT)

    engine = open_engine(made)
    engine.close()
    before, manifest = demo.manifest, Manifest.load(out)
    assert manifest == made.manifest
    assert manifest.precision == "fp16"
    assert engine.info.precision == "fp32"
    assert {form: manifest.graphs[form] for form in before.graphs} == before.graphs
    assert all(manifest.files[file] == before.files[file] for file in before.graphs.values())
    assert form_for_tensorrt(manifest.graphs) == "tensorrt"
    assert manifest.graphs["tensorrt"] == "model.tensorrt.onnx"
    weights = manifest.files.keys() & {"weights.bin", "weights.tensorrt.bin"}
    exact, half = sorted(((out / name).stat().st_size for name in weights), reverse=True)
    assert half < 0.51 * exact
    report = json.loads((out / "report.json").read_text())
    assert report["agreement"]["emulated"]["share"] >= 0.99
    assert report["comparisons"] == ["exact"]


def test_ctrl_c_while_images_are_calibrated_leaves_what_was_there(demo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("the former bundle")
    stopped = Data(StoppedImages("train", num_images=8), DigitsDataset("val", num_images=4))

    with pytest.raises(KeyboardInterrupt), staged(out) as directory:
        make_bundle(Materials(demo, stopped), directory, precision="int8", report={})

    assert (out / "manifest.json").read_text() == "the former bundle"
    assert names_in(tmp_path) == ["fp32", "out"]


def test_ctrl_c_ends_the_command_and_nothing_is_left(checkpoint_of, tmp_path):
    command = [sys.executable, "-m", "export", str(checkpoint_of(Variant.TWO_STAGE))]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "bundle"), "--precision", "int8"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first_line = process.stderr.readline()

    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)

    assert "tracing the model" in first_line
    assert process.returncode in (130, -signal.SIGINT)  # a shell reports both as 130
    assert "stopped; nothing was written" in rest
    assert "Traceback" not in rest
    assert names_in(tmp_path) == []


@pytest.fixture
def traced_before(exported, monkeypatch):
    """A model that finds nothing; its trace, which takes a minute, is not repeated."""
    small = exported(Variant.TWO_STAGE)

    def write_traced(_, directory):
        for file in (*small.manifest.graphs.values(), *WEIGHTS_FILES.values()):
            if (small.directory / file).exists():
                shutil.copy(small.directory / file, directory)
        return small.manifest.graphs

    monkeypatch.setattr(bundle_writer, "export_graphs", lambda *_, **__: None)
    monkeypatch.setattr(bundle_writer, "write_graphs", write_traced)
    return small


def test_a_precision_that_is_refused_leaves_the_others_and_its_former_bundle(
    demo, traced_before, tmp_path, tmp_path_factory, capsys, caplog, monkeypatch
):
    former, other = demo.directory.rename(tmp_path / "a m-int8"), tmp_path / "a m-fp32"
    monkeypatch.setattr("export.comparison.TIME_S", 0.0)
    data = write_splits(tmp_path_factory.mktemp("data"))
    command = [str(traced_before.checkpoint), "--out", str(tmp_path / "a m"), "--data", str(data)]

    status = main([*command, "--precision", "int8,fp32"])

    head, _, int8, fp32, served = capsys.readouterr().out.splitlines()
    assert status == 1
    assert names_in(tmp_path) == ["a m-fp32", "a m-int8"]
    assert Manifest.load(former) == demo.manifest
    assert Manifest.load(other).variant == "two_stage"
    assert head.startswith("| precision | AP | ms per image |")
    assert int8.startswith("| int8 |  |  |  |  |  | the AP in fp32 is 0.0")
    assert re.match(r"\| fp32 \| 0\.0\d+ \| [\d.]+ \| [\d.]+-[\d.]+ \| fp32 \| [\d.]+ \|", fp32)
    assert served.endswith(f"make serve BUNDLE='{other}'")
    assert caplog.text.count("AP in fp32, images: 4") == 1


def test_bundles_are_timed_in_turn_and_keep_nothing_that_was_compiled(
    demo, int8, tmp_path, monkeypatch
):
    monkeypatch.setattr("export.comparison.TIME_S", 0.0)
    copy = Bundle.load(Path(shutil.copytree(int8.directory, tmp_path / "int8")))
    outcomes = [Outcome("fp32", demo, 0.66), Outcome("int8", copy), Outcome("bf16", None)]

    speeds = measure_speeds(outcomes)

    assert [len(speed.seconds) >= MIN_ROUNDS for speed in speeds.values()] == [True, True]
    assert {name: speed.runs_in for name, speed in speeds.items()} == {
        "fp32": "fp32",
        "int8": "int8",
    }
    assert "cache" not in names_in(demo.directory) + names_in(copy.directory)
    assert len(table(outcomes, speeds).splitlines()) == 5


def test_a_model_of_other_things_needs_data(checkpoint_of, tmp_path, capsys):
    checkpoint = checkpoint_of(Variant.BASE)

    status = main([str(checkpoint), "--out", str(tmp_path / "bundle"), "--precision", "bf16"])

    assert status == 1
    assert "expected DATA=DIR (--data), a data set; only" in capsys.readouterr().err
    assert names_in(tmp_path) == []


def test_a_split_that_is_missing_or_empty_is_named(tmp_path):
    write_coco(DigitsDataset("val", num_images=2), tmp_path)

    with pytest.raises(ValueError, match="no annotations of split 'train'"):
        open_splits(tmp_path, CLASSES)

    empty = DigitsDataset("train", num_images=0).ground_truth()
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(empty))
    (tmp_path / "images" / "train").mkdir()
    with pytest.raises(ValueError, match="no-images: the list images is empty"):
        open_splits(tmp_path, CLASSES)


def test_data_of_other_classes_is_refused(tmp_path):
    write_splits(tmp_path)

    with pytest.raises(ValueError, match=r"not have: 10 of 10, such as 1 zero, .*such as 1 cell"):
        open_splits(tmp_path, [ClassInfo(id=1, name="cell")])
