"""What was measured and compiled is used again only if all that it depends on is the same."""

import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from bundle.manifest import Bundle
from engines.cores import allowed_cores
from engines.cpu import fastest, openvino_compile, openvino_graph
from engines.cpu.openvino_compile import GraphCompiler
from engines.cpu.openvino_engine import OpenVinoEngine
from plugins import library

pytestmark = pytest.mark.skipif(
    library.find(library.openvino_extension()) is None, reason="there is no C++ compiler"
)
Patch = pytest.MonkeyPatch


@pytest.fixture
def both(toy_bundle: Path, tmp_path: Path) -> Bundle:
    """The toy bundle with its graph in both forms."""
    directory = Path(shutil.copytree(toy_bundle, tmp_path / "toy"))
    shutil.copyfile(directory / "model.onnx", directory / "model.plugin.onnx")
    bundle = Bundle(directory, Bundle.load(directory).manifest).with_manifest(
        graphs={"standard": "model.onnx", "plugin": "model.plugin.onnx"}
    )
    return bundle.save()


@pytest.fixture
def done(both: Bundle, tmp_path: Path, monkeypatch: Patch) -> Callable[..., list[str]]:
    """A function that opens the bundle and says what was not taken from its cache."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    shutil.copy(library.FOLDER / library.openvino_extension(), folder)
    monkeypatch.setattr(library, "FOLDER", folder)
    monkeypatch.setattr(fastest, "MOST_ROUNDS", 0)
    what: list[str] = []
    measure, compile_graph = fastest.measure_fastest, GraphCompiler._compile

    def measured(*args: Any, question: str, **options: Any) -> str:
        what.append(f"measured {question}")
        return measure(*args, question=question, **options)

    def compiled(self: GraphCompiler, options: Mapping[str, Any]) -> ov.CompiledModel:
        what.append("compiled")
        return compile_graph(self, options)

    monkeypatch.setattr(openvino_compile, "measure_fastest", measured)
    monkeypatch.setattr(GraphCompiler, "_compile", compiled)

    def done(graph: str | None = None) -> list[str]:
        what.clear()
        OpenVinoEngine(both, threads=2, mode="auto", graph=graph).close()
        return list(what)

    return done


def _append_to_library(_: Patch) -> None:
    with (library.FOLDER / library.openvino_extension()).open("ab") as file:
        file.write(b"newer")


def _remove_library(_: Patch) -> None:
    (library.FOLDER / library.openvino_extension()).unlink()


def _change_processor(monkeypatch: Patch) -> None:
    monkeypatch.setattr(openvino_compile, "describe_processor", lambda: "AMD EPYC; flags: avx2")


def _change_version(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ov, "get_version", lambda: "another")


def _change_options(monkeypatch: Patch) -> None:
    monkeypatch.setattr(openvino_compile, "_WORKAROUNDS", {"f32": {"SNIPPETS_MODE": "DISABLE"}})


def _change_rewriting(monkeypatch: Patch) -> None:
    get_source = inspect.getsource
    monkeypatch.setattr(
        *(inspect, "getsource"),
        lambda module: get_source(module) + "# changed" * (module is openvino_graph),
    )


def _change_cores(monkeypatch: Patch) -> None:
    num_cores = allowed_cores() + 1
    monkeypatch.setattr(openvino_compile, "allowed_cores", lambda: num_cores)


def test_a_second_start_measures_and_compiles_nothing(done: Callable[..., list[str]]) -> None:
    assert done()[0] == "compiled"

    assert done() == []


@pytest.mark.parametrize(
    "change",
    [
        *(_append_to_library, _remove_library, _change_processor, _change_version),
        *(_change_options, _change_rewriting),
    ],
)
def test_with_another_library_machine_runtime_or_code_both_are_done_again(
    done: Callable[..., list[str]], monkeypatch: Patch, change: Callable[[Patch], None]
) -> None:
    done()

    change(monkeypatch)

    assert done() == ["compiled", "measured layout"]


def test_a_choice_made_without_the_native_op_ends_when_it_appears(
    done: Callable[..., list[str]],
) -> None:
    done("standard")

    assert done() == ["compiled", "measured layout"]


def test_with_other_cores_times_are_measured_again(
    done: Callable[..., list[str]], monkeypatch: Patch
) -> None:
    done()

    _change_cores(monkeypatch)

    assert done() == ["measured layout"]
