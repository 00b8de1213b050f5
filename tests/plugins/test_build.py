"""Native libraries are made when something they are made from changes, and only then."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from plugins import build, library
from plugins.build import Library

COMPILER = "g++"
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler (g++)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are looked for and put, instead of build/plugins."""
    built = tmp_path / "built"
    built.mkdir()
    monkeypatch.setattr(library, "FOLDER", built)
    return built


@pytest.fixture
def one_function(tmp_path: Path) -> Library:
    """A library of a single function."""
    source = tmp_path / "one_function.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    return Library("libone.so", (source,))


def make(wanted: Library) -> bool:
    """Build a library whose sources may have changed since it was built before."""
    with TemporaryDirectory() as objects:
        return build.build(COMPILER, wanted, objects=Path(objects))


@needs_compiler
def test_a_library_is_made_once(folder: Path, one_function: Library) -> None:
    assert library.find("libone.so") is None

    made = [make(one_function) for _ in range(3)]

    assert made == [True, False, False]
    assert library.find("libone.so") == folder / "libone.so"
    assert sorted(path.name for path in folder.iterdir()) == ["libone.so", "libone.so.key"]


@needs_compiler
@pytest.mark.usefixtures("folder")
def test_a_library_is_made_again_when_a_source_or_a_flag_changes(one_function: Library) -> None:
    make(one_function)

    one_function.sources[0].write_text('extern "C" int one() { return 2; }\n')
    with_flag = Library(one_function.name, one_function.sources, flags=(*build.FLAGS, "-g"))

    assert make(one_function)
    assert make(with_flag)
    assert not make(with_flag)


@needs_compiler
@pytest.mark.usefixtures("folder")
def test_headers_are_part_of_what_a_library_is_made_from(
    tmp_path: Path, one_function: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "OP", tmp_path)
    header = tmp_path / "core" / "some.h"
    header.parent.mkdir()
    header.write_text("#define ONE 1\n")
    make(one_function)

    header.write_text("#define ONE 2\n")

    assert make(one_function)


@needs_compiler
@pytest.mark.usefixtures("folder")
def test_another_version_of_the_framework_in_its_place_is_built_against(
    tmp_path: Path, one_function: Library
) -> None:
    header = tmp_path / "NvInferVersion.h"
    header.write_text("#define TENSORRT_MAJOR 10\n")
    binding = Library(one_function.name, one_function.sources, versions=(header,))
    make(binding)

    header.write_text("#define TENSORRT_MAJOR 11\n")

    assert make(binding)
    assert not make(binding)


@needs_compiler
@pytest.mark.usefixtures("folder")
def test_what_two_libraries_are_made_of_is_compiled_once(
    tmp_path: Path, one_function: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    run = build._run

    def recorded(command: list[str]) -> None:
        commands.append(command)
        run(command)

    monkeypatch.setattr(build, "_run", recorded)
    binding = tmp_path / "bindings" / "framework.cpp"
    binding.parent.mkdir()
    binding.write_text("int framework() { return FRAMEWORK; }\n")
    sources = (*one_function.sources, binding)
    other = Library("libother.so", sources, binding_flags=("-DFRAMEWORK=2",))

    made = [build.build(COMPILER, wanted, objects=tmp_path) for wanted in (one_function, other)]

    compiled = [command[-3] for command in commands if "-c" in command]
    assert made == [True, True]
    assert compiled == [str(one_function.sources[0]), str(binding)]


@needs_compiler
def test_a_source_that_does_not_compile_leaves_the_library_of_before(
    folder: Path, one_function: Library
) -> None:
    make(one_function)
    before = (folder / "libone.so").read_bytes()
    one_function.sources[0].write_text("int one( {\n")

    with pytest.raises(RuntimeError, match="error: expected"):
        make(one_function)

    assert (folder / "libone.so").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["libone.so", "libone.so.key"]


def test_without_a_compiler_nothing_is_built_and_one_line_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("sys.argv", ["plugins.build"])

    status = build.main()

    assert status == 0
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().out == (
        "no C++ compiler (no-such-compiler): nothing native is built; standard operators are used\n"
    )


@needs_compiler
@pytest.mark.usefixtures("folder")
def test_a_compiler_that_fails_is_an_error_with_a_way_around_it(
    one_function: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_function.sources[0].write_text("int one( {\n")
    monkeypatch.setattr(build, "libraries", lambda **_: iter([one_function]))
    monkeypatch.setattr("sys.argv", ["plugins.build"])

    status = build.main()

    assert status == 1
    assert "libone.so: not built; CXX=none builds without it" in capsys.readouterr().err


@pytest.mark.parametrize(("has_gpu", "options", "is_made"), [
    (False, [], True), (False, ["--to-serve"], False), (True, ["--to-serve"], True),
])  # fmt: skip
def test_serving_waits_for_no_library_that_a_machine_without_a_gpu_cannot_use(
    folder: Path,
    one_function: Library,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_gpu: bool,
    options: list[str],
    is_made: bool,
) -> None:
    monkeypatch.setattr(build, "cpu_kernels", tuple)
    monkeypatch.setattr(build, "_openvino_extension", tuple)
    monkeypatch.setattr(build, "_for_gpus", lambda: iter([one_function]))
    monkeypatch.setattr(build, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr("sys.argv", ["plugins.build", *options])

    assert build.main() == 0

    assert (folder / "libone.so").exists() == is_made


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit that is not on the path, and the only one."""
    tools = tmp_path / "cuda" / "bin"
    tools.mkdir(parents=True)
    nvcc = tools / "nvcc"
    nvcc.write_text("#!/bin/sh\necho sm_90\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(build, "CUDA_TOOLS", tools)
    return nvcc


def test_nvcc_is_found_where_the_toolkit_puts_it_unless_another_one_is_named(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVCC", raising=False)
    by_default = build.nvcc()
    monkeypatch.setenv("NVCC", "none")
    unwanted = build.nvcc()
    monkeypatch.setenv("NVCC", str(toolkit))

    assert by_default == build.nvcc() == str(toolkit)
    assert unwanted is None


@pytest.mark.parametrize(("has_gpu", "named", "is_said"), [
    (True, None, True), (True, "none", False), (False, None, False),
])  # fmt: skip
def test_a_machine_with_a_gpu_and_without_nvcc_is_told_what_is_missing(
    toolkit: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    has_gpu: bool,
    named: str | None,
    is_said: bool,
) -> None:
    toolkit.unlink()
    monkeypatch.delenv("NVCC", raising=False)
    if named:
        monkeypatch.setenv("NVCC", named)
    monkeypatch.setattr(build, "has_gpu", lambda: has_gpu)

    assert list(build._for_gpus()) == []

    assert capsys.readouterr().out.startswith("no nvcc: nothing is built for GPUs") == is_said


def code_of(flags: list[str]) -> list[str]:
    """What the flags make: sm_ machine code, compute_ portable code."""
    return [flag.split("code=")[-1] for flag in flags]


def test_every_gpu_has_machine_code_and_later_ones_the_last_ones_portable_code() -> None:
    known = [f"sm_{gpu}" for gpu in build.GPUS]

    assert code_of(build.gpu_code(known)) == [*known, "compute_120"]


def test_a_gpu_that_nvcc_does_not_know_gets_the_portable_code_of_the_one_before_it() -> None:
    known = [f"sm_{gpu}" for gpu in build.GPUS if gpu != 110]

    assert code_of(build.gpu_code(known)) == [*known, "compute_100", "compute_120"]


def test_gpus_that_nvcc_no_longer_knows_are_left_out() -> None:
    assert code_of(build.gpu_code(["sm_90", "sm_100"])) == ["sm_90", "sm_100", "compute_100"]
