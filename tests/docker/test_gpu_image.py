"""The steps of gpu.Dockerfile that need no container engine, no GPU and nothing of NVIDIA's."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plugins import library
from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker/gpu.Dockerfile"
INSTRUCTIONS = dockerfile.instructions(DOCKERFILE.read_text())
STARTS = [index for index, (keyword, _) in enumerate(INSTRUCTIONS) if keyword == "FROM"]

# Stands in for both compilers: says what nvcc would, and makes what it is asked for, empty.
COMPILER = """#!/bin/sh
case "$*" in
    --list-gpu-code) echo sm_90; exit ;;
esac
echo "$*" >> "$0.log"
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && : > "$2"
    shift
done
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dockerfile.Stage:
    """The last stage, without what the others install or build."""
    return dockerfile.build(DOCKERFILE, ROOT, tmp_path_factory.mktemp("image"), installs=False)


def final_stage() -> list[tuple[str, str]]:
    return INSTRUCTIONS[STARTS[-1] :]


def run_plugin_step(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    """The RUN of the stage with nvcc, in a copy of what that stage copies.

    TensorRT's headers are those of kernel-lens, 10.14.1; `version` is what the step asks for.
    """
    package = importlib.util.find_spec("kernel_lens")
    if package is None or package.origin is None:
        pytest.skip("no kernel-lens, which has TensorRT's headers")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    shutil.copytree(ROOT / "plugins", folder / "plugins")
    compiler = folder / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    (step,) = [rest for keyword, rest in INSTRUCTIONS[: STARTS[1]] if keyword == "RUN"]
    step = step.replace("find /usr /opt", f"find {Path(package.origin).parent}")
    for part, number in zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True):
        step = re.sub(rf"NV_TENSORRT_{part} == \d+", f"NV_TENSORRT_{part} == {number}", step)
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    environment = {
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "CXX": str(compiler),
        "NVCC": str(compiler),
    }
    return subprocess.run(
        step, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_plugin_is_built_with_the_headers_of_the_base_where_the_last_stage_takes_it(tmp_path):
    result = run_plugin_step(tmp_path, "10.14.1")

    assert result.returncode == 0, result.stderr
    (copied,) = [rest.split()[1] for _, rest in final_stage() if rest.startswith("--from=plugin")]
    assert copied == f"/build/build/plugins/{library.TENSORRT_PLUGIN}"
    assert (tmp_path / copied.removeprefix("/build/")).exists()
    assert "kernel_lens/include/tensorrt" in (tmp_path / "compiler.log").read_text()


def test_a_base_with_another_tensorrt_than_that_of_the_last_stage_ends_the_build(tmp_path):
    result = run_plugin_step(tmp_path, "11.2.1")

    assert result.returncode != 0
    assert "static assertion failed" in result.stderr
    assert not (tmp_path / "build").exists()


def test_the_headers_and_the_package_of_tensorrt_have_to_be_of_one_version():
    text = DOCKERFILE.read_text()
    headers = re.findall(r"NV_TENSORRT_(?:MAJOR|MINOR|PATCH) == (\d+)", text)
    (package,) = re.findall(r"tensorrt-cu13==([\d.]+)", text)

    assert headers == package.split(".")[:3]


def test_the_last_stage_has_no_compiler_and_installs_nothing():
    (_, base), *steps = final_stage()
    runs = [rest for keyword, rest in steps if keyword == "RUN"]
    taken = {rest.split()[0]: rest.split()[1] for _, rest in steps if rest.startswith("--from")}

    assert "-slim-" in base
    assert [run for run in runs if not run.startswith('/venv/bin/python -c "import ctypes')] == []
    assert taken.keys() == {"--from=packages", "--from=plugin"}
    assert taken["--from=plugin"].endswith(".so")
    assert [rest for _, rest in steps if rest.startswith("plugins/")] == [
        "plugins/__init__.py plugins/library.py plugins/"
    ]


def test_the_libraries_that_are_built_are_loaded_on_the_same_debian_that_they_were_linked_on():
    bases = [INSTRUCTIONS[start][1].split()[0] for start in STARTS[1:]]

    assert [base.rsplit("-", 1)[-1] for base in bases] == ["trixie", "trixie"]


def test_the_image_detects_with_nothing_but_what_it_holds(image):
    result = image.python("-m", "service.detect", "bundles/demo/samples")

    assert result.returncode == 0, result.stderr
    assert '"detections"' in result.stdout
    assert sorted(path.name for path in image.folder(".").iterdir()) == [
        "bundle",
        "bundles",
        "engines",
        "plugins",
        "service",
    ]
    assert not list(image.root.rglob("__pycache__"))


def test_the_image_has_what_tensorrt_needs_of_the_service(image):
    modules = [
        f"engines.gpu.{path.stem}"
        for path in image.folder("engines/gpu").glob("[!_]*.py")
        if not path.stem.startswith("torch_")  # another engine's
    ]

    result = image.python("-c", f"import {', '.join(modules)}")

    assert result.returncode == 0, result.stderr


def test_the_image_starts_the_service_as_a_user_other_than_root(image):
    assert image.command[1:] == ["-m", "service"]
    assert all(int(number) > 0 for number in image.user.split(":"))
    assert "/readyz" in image.healthcheck[-1]
    assert image.environment["PYTHONDONTWRITEBYTECODE"] == "1"
