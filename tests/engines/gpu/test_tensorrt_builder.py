import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.layout import GRAPH_FILES
from bundle.manifest import Manifest
from bundle.preprocess import Preprocess
from bundle.tensorrt_plan import default_profiles
from engines.gpu import tensorrt_builder
from engines.gpu.tensorrt_builder import BuildOptions, build_plan
from export.graph.tensorrt_plan import choose_profiles
from plugins import library
from tests.fake_tensorrt import FakeTensorRT
from tests.tensorrt_rtx import run_with_tensorrt_rtx
from tests.toy_bundle import make_toy_bundle

PAGE = Path(__file__).parents[3] / "docs" / "tensorrt.md"


def options_for(directory: Path, **others: Any) -> BuildOptions:
    manifest = Manifest.load(directory)
    return BuildOptions(default_profiles(manifest.preprocess, manifest.max_batch_size), **others)


def build(directory: Path, trt: FakeTensorRT, graph: str = "model.onnx", **others: Any) -> bytes:
    inputs = Manifest.load(directory).inputs
    return build_plan(
        trt, directory / graph, inputs=inputs, options=options_for(directory, **others)
    )


def test_every_profile_reaches_every_input(toy_bundle: Path, trt: FakeTensorRT) -> None:
    build(toy_bundle, trt)

    (config,) = trt.builds
    assert [shapes["images"] for shapes in config.profiles] == [
        ((1, 32, 32, 3), (1, 64, 85, 3), (1, 64, 128, 3)),
        ((1, 32, 32, 3), (1, 85, 64, 3), (1, 128, 64, 3)),
        ((1, 32, 32, 3), (4, 64, 85, 3), (4, 64, 128, 3)),
        ((1, 32, 32, 3), (4, 85, 64, 3), (4, 128, 64, 3)),
    ]
    assert [shapes["padding_mask"] for shapes in config.profiles] == [
        tuple(size[:3] for size in shapes["images"]) for shapes in config.profiles
    ]


def test_float32_is_not_rounded_to_tf32(toy_bundle: Path, trt: FakeTensorRT) -> None:
    build(toy_bundle, trt)

    assert trt.builds[0].cleared == [trt.BuilderFlag.TF32]


def test_the_plugin_is_loaded_and_not_embedded(
    toy_bundle: Path, trt: FakeTensorRT, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.so"
    plugin.write_text("MSDeformAttn")

    build(toy_bundle, trt, plugin=plugin)

    assert trt.builds[0].plugins_to_serialize == []
    assert [creator.name for creator in trt.registry.all_creators] == ["MSDeformAttn"]


def test_the_documented_trtexec_command_sets_what_the_builder_sets(
    toy_bundle: Path, trt: FakeTensorRT, tmp_path: Path
) -> None:
    (command,) = re.findall(r"^trtexec (.*?[^\\])$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    options = [part.partition("=")[::2] for part in command.replace("\\\n", "").split()]
    profiles = choose_profiles(["8x800x1333", "8x1333x800"], Preprocess(min_side=128))
    plugin = tmp_path / Path(dict(options)["--dynamicPlugins"]).name
    plugin.write_text("MSDeformAttn")
    build_plan(
        trt,
        toy_bundle / "model.onnx",
        inputs=Manifest.load(toy_bundle).inputs,
        options=BuildOptions(profiles, plugin),
    )

    (config,) = trt.builds
    about_shapes = [option for option in options if re.match("--(profile|...Shapes)", option[0])]
    assert about_shapes == list(shape_options(config.profiles))
    assert ("--noTF32", "") in options
    assert ("--stronglyTyped", "") in options  # which the fake builder insists on
    assert "--setPluginsToSerialize" not in dict(options)
    assert plugin.name == library.TENSORRT_PLUGIN
    assert Path(dict(options)["--onnx"]).name in GRAPH_FILES.values()


def shape_options(profiles: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The profiles of a build as options of trtexec."""
    for index, shapes in enumerate(profiles):
        yield "--profile", str(index)
        for place, name in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            sizes = ("x".join(map(str, dims[place])) for dims in shapes.values())
            yield name, ",".join(map(":".join, zip(shapes, sizes, strict=True)))


def test_the_workspace_is_limited_where_a_limit_is_given(
    toy_bundle: Path, trt: FakeTensorRT
) -> None:
    build(toy_bundle, trt)
    build(toy_bundle, trt, workspace_bytes=1000)

    assert [config.pools for config in trt.builds] == [{}, {trt.MemoryPoolType.WORKSPACE: 1000}]


@pytest.mark.parametrize("known", [None, b"timings", b"of another GPU"])
def test_measurements_of_kernels_are_kept(
    toy_bundle: Path, trt: FakeTensorRT, tmp_path: Path, known: bytes | None
) -> None:
    file = tmp_path / "timing.cache"
    if known is not None:
        file.write_bytes(known)

    build(toy_bundle, trt, timing_cache=file)

    cache = trt.builds[0].cache
    assert cache is not None
    assert cache.content == (b"timings" if known == b"timings" else b"")
    assert file.read_bytes() == b"timings"


def test_progress_is_logged(
    toy_bundle: Path,
    trt: FakeTensorRT,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tensorrt_builder, "PROGRESS_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO)

    build(toy_bundle, trt)

    assert "building a plan of" in caplog.text
    assert "Tactics: 2 of 2" in caplog.text


def test_a_graph_that_is_missing_is_named(toy_bundle: Path, trt: FakeTensorRT) -> None:
    with pytest.raises(ValueError, match=r"other\.onnx: no such graph; run `make export`"):
        build(toy_bundle, trt, "other.onnx")


def test_a_build_that_fails_says_why(toy_bundle: Path, trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.errors["build_serialized_network"] = "Error Code 10: no implementation for node"

    with pytest.raises(ValueError, match=r"the build failed: Error Code 10: no implementation"):
        build(toy_bundle, trt, timing_cache=tmp_path / "timing.cache")

    assert not (tmp_path / "timing.cache").exists()


# --- with the builder of TensorRT-RTX

PROGRAM = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from bundle.manifest import Manifest
from bundle.tensorrt_plan import default_profiles
from engines.gpu.tensorrt_builder import BuildOptions, build_plan

directory, graph, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
manifest = Manifest.load(directory)
profiles = default_profiles(manifest.preprocess, manifest.max_batch_size)
try:
    options = BuildOptions(profiles, target=target)
    print("built", len(build_plan(trt, directory / graph, inputs=manifest.inputs, options=options)))
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("target", ["8.6", "12.0"])
def test_a_real_builder_makes_a_plan(toy_bundle: Path, tmp_path: Path, target: str) -> None:
    printed = run_with_tensorrt_rtx(PROGRAM, tmp_path, str(toy_bundle), "model.onnx", target)

    assert printed.startswith("built ")
    assert int(printed.split()[1]) > 100_000


@pytest.mark.parametrize(
    ("graph", "target", "message"),
    [
        ("damaged.onnx", "8.6", "damaged.onnx: TensorRT 1.7.1.116 cannot read it: "),
        ("model.onnx", "9.9", "expected a target that tensorrt_rtx builds for, got SM99"),
    ],
)
def test_a_real_builder_refuses_in_one_line(
    tmp_path: Path, graph: str, target: str, message: str
) -> None:
    make_toy_bundle(tmp_path / "toy")
    (tmp_path / "toy" / "damaged.onnx").write_bytes(b"nonsense")

    printed = run_with_tensorrt_rtx(PROGRAM, tmp_path, str(tmp_path / "toy"), graph, target)

    assert printed.startswith("refused: ")
    assert message in printed
    assert printed.count("\n") == 1
