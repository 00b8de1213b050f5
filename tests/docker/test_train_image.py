"""The code that train.Dockerfile copies, alone in a folder; the packages are those of the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dockerfile.Stage:
    """The last stage without its virtual environment."""
    return dockerfile.build(
        ROOT / "docker/train.Dockerfile",
        ROOT,
        tmp_path_factory.mktemp("image"),
        installs=False,
    )


@pytest.mark.parametrize(
    "module", ["model.train", "model.evaluate", "model.weights", "export", "export.evaluate"]
)
def test_the_image_holds_all_that_its_commands_need(image, module):
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=image.folder("."),
        env=image.variables(),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr


def test_the_image_starts_training_as_compose_does(image):
    assert image.command[1:3] == ["-m", "model.train"]
    assert int(image.user.split(":")[0]) > 0
