"""The code that train.Dockerfile copies, alone in a folder, with the packages of the tests."""

import re
from pathlib import Path

import pytest

from plugins import library
from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker/train.Dockerfile"
INSTRUCTIONS = dockerfile.instructions(DOCKERFILE.read_text())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dockerfile.Stage:
    """The last stage without its virtual environment."""
    return dockerfile.build(DOCKERFILE, ROOT, tmp_path_factory.mktemp("image"), installs=False)


# The helps of all commands, in one process: PyTorch takes seconds to import.
HELP = """
import contextlib, runpy, sys

for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def test_the_image_holds_all_that_its_commands_need(image):
    modules = ["model.train", "model.evaluate", "model.weights", "export", "export.evaluate"]

    result = image.python("-c", HELP, *modules)

    assert result.returncode == 0, result.stderr
    assert re.findall(r"^usage: python -m ([a-z.]+)", result.stdout, flags=re.M) == modules


def test_every_module_of_the_image_finds_what_it_imports(image):
    folders = [image.folder(name) for name in ("model", "export")]
    # Triton comes with the image's PyTorch, but not with that of the tests.
    files = [
        path for folder in folders for path in folder.rglob("*.py") if "triton_" not in path.name
    ]
    modules = [
        ".".join(path.relative_to(image.folder(".")).with_suffix("").parts) for path in files
    ]

    result = image.python("-c", f"import {', '.join(modules)}")

    assert result.returncode == 0, result.stderr


def test_the_image_starts_training_as_compose_does(image):
    assert image.command[1:3] == ["-m", "model.train"]
    assert int(image.user.split(":")[0]) > 0


def test_the_image_has_the_kernels_of_a_gpu_as_it_has_no_compiler_to_run_triton():
    bases = [rest for keyword, rest in INSTRUCTIONS if keyword == "FROM"]
    kernels = [rest.split()[1] for _, rest in INSTRUCTIONS if rest.startswith("--from=kernels")]

    assert kernels == [f"/build/build/plugins/{library.CUDA_KERNELS}"]
    assert [base.split()[0].split("-", 1)[1] for base in bases[1:]] == ["trixie", "slim-trixie"]
