import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.manifest import Bundle, Manifest
from bundle.tensorrt_plan import TensorRTPlan, default_profiles
from engines.gpu.cuda import load_cuda
from engines.gpu.tensorrt_engine import TensorRTEngine
from engines.gpu.tensorrt_plans import Plan, find_plan
from engines.gpu.tensorrt_runtime import load_tensorrt
from plugins import library
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT
from tests.toy_bundle import make_toy_bundle


def find(directory: Path, *, may_build: bool = False) -> Plan:
    bundle = Bundle.load(directory)
    return find_plan(bundle, trt=load_tensorrt(), cuda=load_cuda(), may_build=may_build)


def shipped_with(directory: Path) -> TensorRTPlan:
    """What the manifest says of the bundle's plan."""
    plan = Manifest.load(directory).tensorrt
    assert plan is not None
    return plan


def kept(directory: Path) -> list[Path]:
    return sorted((directory / "cache").rglob("*.plan"))


@pytest.fixture
def elsewhere(planned: Callable[..., Path], cuda: FakeCuda) -> Path:
    """A bundle with a plan of another machine."""
    directory = planned()
    cuda.name, cuda.major, cuda.minor = b"NVIDIA L4", 8, 9
    return directory


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trt: FakeTensorRT) -> Path:
    """The plugin library of this machine."""
    monkeypatch.setattr("plugins.library.FOLDER", tmp_path)
    path = tmp_path / library.TENSORRT_PLUGIN
    path.write_text("MSDeformAttn")
    return path


def test_the_plan_of_the_bundle_is_taken_where_it_was_made_for_this_machine(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    directory = planned()

    plan = find(directory)

    assert plan.data == (directory / "model.plan").read_bytes()
    assert plan.profiles == shipped_with(directory).profiles
    assert trt.builds == []


def test_a_plan_of_another_gpu_is_refused_with_what_differs(elsewhere: Path) -> None:
    with pytest.raises(ValueError, match="was not built for this machine") as caught:
        find(elsewhere)

    message = str(caught.value)
    assert "GPU: built for NVIDIA Fake, found NVIDIA L4" in message
    assert "compute capability: built for 8.6, found 8.9" in message
    assert "TensorRT" not in message.split("(")[1].split(")")[0]
    assert "make export RUNTIME=tensorrt" in message
    assert "DETR_REBUILD_ENGINE=true" in message


def test_a_plan_of_another_tensorrt_is_refused_with_both_versions(
    planned: Callable[..., Path], trt: FakeTensorRT
) -> None:
    directory = planned()
    trt.__version__ = "10.16.1.11"

    with pytest.raises(
        ValueError, match=r"TensorRT: built for 11\.4\.0\.106, found 10\.16\.1\.11\);"
    ):
        find(directory)


def test_a_bundle_without_a_plan_is_refused_unless_one_may_be_built(
    toy_bundle: Path, trt: FakeTensorRT
) -> None:
    with pytest.raises(ValueError, match=r"toy holds no TensorRT plan; rebuild the plan"):
        find(toy_bundle)


def test_a_plan_is_built_for_this_machine_where_that_is_allowed(
    elsewhere: Path, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    plan = find(elsewhere, may_build=True)

    assert plan.profiles == shipped_with(elsewhere).profiles
    assert len(trt.builds) == len(kept(elsewhere)) == 1
    assert "was not built for this machine (GPU: built for NVIDIA Fake" in caplog.text
    assert "unverified" in caplog.text
    manifest = Manifest.load(elsewhere)
    TensorRTEngine(
        manifest, plan.data, profiles=plan.profiles, trt=trt, cuda=load_cuda(), max_graphs=1
    ).close()


def test_a_plan_that_was_built_is_kept_for_the_next_start(
    elsewhere: Path, trt: FakeTensorRT
) -> None:
    first, second = find(elsewhere, may_build=True), find(elsewhere, may_build=True)

    assert first == second
    assert len(trt.builds) == 1


def test_another_gpu_gets_a_plan_of_its_own(
    elsewhere: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    find(elsewhere, may_build=True)
    cuda.name = b"NVIDIA H100"

    find(elsewhere, may_build=True)

    assert len(trt.builds) == len(kept(elsewhere)) == 2


def test_other_code_to_build_with_builds_again(
    elsewhere: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(elsewhere, may_build=True)
    monkeypatch.setattr("inspect.getsource", lambda module: f"other code of {module}")

    find(elsewhere, may_build=True)

    assert len(trt.builds) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"!", lambda _: b""]
)
def test_a_kept_plan_that_is_damaged_is_built_again(
    elsewhere: Path, trt: FakeTensorRT, damage: Callable[[bytes], bytes]
) -> None:
    whole = find(elsewhere, may_build=True)
    (file,) = kept(elsewhere)
    file.write_bytes(damage(file.read_bytes()))

    assert find(elsewhere, may_build=True) == whole
    assert len(trt.builds) == 2


def test_the_bundle_stays_whole_when_a_plan_is_kept_in_it(elsewhere: Path) -> None:
    find(elsewhere, may_build=True)

    Manifest.load(elsewhere)


def test_a_bundle_that_cannot_be_written_to_is_served_all_the_same(
    elsewhere: Path, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (elsewhere / "cache").write_text("no folder")

    plan = find(elsewhere, may_build=True)

    assert plan.data.startswith(b"plan")
    assert "cannot be kept for the next start" in caplog.text


def test_a_bundle_without_a_plan_gets_profiles_for_every_image(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    manifest = make_toy_bundle(tmp_path / "toy")

    plan = find(tmp_path / "toy", may_build=True)

    assert plan.profiles == default_profiles(manifest.preprocess)


def test_a_graph_of_the_operator_is_not_built_without_its_plugin(
    planned: Callable[..., Path], cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("plugins.library.FOLDER", tmp_path)
    directory = planned(graph="plugin")
    cuda.name = b"NVIDIA L4"

    with pytest.raises(
        ValueError,
        match=r"no plugin library for TensorRT 11\.4.*attn_tensorrt\.so .*`make plugins`",
    ):
        find(directory, may_build=True)


def test_the_plugin_is_known_before_a_plan_is_loaded(
    planned: Callable[..., Path], plugin: Path, trt: FakeTensorRT
) -> None:
    find(planned(graph="plugin"))

    assert [creator.name for creator in trt.registry.all_creators] == ["MSDeformAttn"]


def test_a_plan_with_the_operator_is_not_run_without_its_plugin(
    planned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("plugins.library.FOLDER", tmp_path)

    with pytest.raises(ValueError, match=r"no plugin library for TensorRT 11\.4.*`make plugins`"):
        find(planned(graph="plugin"))


def test_a_plan_of_another_plugin_is_refused(
    planned: Callable[..., Path], plugin: Path, trt: FakeTensorRT
) -> None:
    directory = planned(graph="plugin")
    manifest, plan = Manifest.load(directory), shipped_with(directory)
    fingerprint = plan.fingerprint.model_copy(update={"plugin_sha256": "0" * 64})
    shipped = plan.model_copy(update={"fingerprint": fingerprint})
    manifest.model_copy(update={"tensorrt": shipped}).save(directory)

    with pytest.raises(ValueError, match=r"\(plugin: built for 000000000000, found [0-9a-f]{12}\)"):
        find(directory)


def test_a_build_that_runs_out_of_memory_says_what_to_do(
    elsewhere: Path, trt: FakeTensorRT
) -> None:
    reason = "Error Code 2: OutOfMemory (Requested size was 900 bytes.)"
    trt.errors["build_serialized_network"] = reason

    with pytest.raises(
        ValueError,
        match=r"model\.onnx: the build failed: .*OutOfMemory.*stop other programs on the GPU",
    ):
        find(elsewhere, may_build=True)

    assert kept(elsewhere) == []
