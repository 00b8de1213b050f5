"""The steps of service.Dockerfile, carried out in an empty folder and run as compose runs them."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dockerfile.Stage]:
    """The last stage, with every file and folder read-only."""
    stage = dockerfile.build(
        ROOT / "docker/service.Dockerfile", ROOT, tmp_path_factory.mktemp("image")
    )
    _set_writable(stage.root, False)
    yield stage
    _set_writable(stage.root, True)


@pytest.fixture(scope="module")
def container(
    image: dockerfile.Stage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The image's command, without privileges; the process and its address."""
    port = _free_port()
    environment = image.variables() | {
        "DETR_HOST": "127.0.0.1",
        "DETR_PORT": str(port),
        "TMPDIR": str(tmp_path_factory.mktemp("tmpfs")),
    }
    process = subprocess.Popen(
        [*_without_privileges(), *image.command], cwd=image.folder("."), env=environment
    )
    deadline = time.monotonic() + START_LIMIT_S
    while subprocess.run(image.healthcheck, env=environment, capture_output=True).returncode:
        assert process.poll() is None, f"the service ended with {process.returncode}"
        assert time.monotonic() < deadline, "the health check did not turn green"
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_the_image_answers_a_detection_and_writes_nothing(image, container):
    _, address = container
    before = _listing(image.root)
    sample = next((image.folder("bundles/demo/samples")).iterdir())

    answer = httpx.post(f"{address}/detect", content=sample.read_bytes(), timeout=60)

    assert answer.status_code == 200
    assert answer.json()["results"][0]["detections"]
    assert _listing(image.root) == before


def test_the_image_holds_neither_torch_nor_pip_nor_training_code(image):
    packages = next(image.folder("/venv").glob("lib/python3*/site-packages"))

    assert not list(packages.glob("torch*"))
    assert not list(packages.glob("pip"))
    assert sorted(path.name for path in image.folder(".").iterdir()) == [
        "build",
        "bundle",
        "bundles",
        "engines",
        "plugins",
        "service",
    ]


def test_the_image_runs_as_a_numbered_user_other_than_root(image):
    user, group = image.user.split(":")

    assert int(user) > 0
    assert int(group) > 0


def test_the_container_stops_cleanly_when_it_is_told_to(container):
    process, _ = container

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == 0


def _without_privileges() -> list[str]:
    """As compose does it (cap_drop, no-new-privileges), so that root too heeds read-only files."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


def _set_writable(root: Path, writable: bool) -> None:
    for folder, _, files in os.walk(root):
        for path in [folder, *(os.path.join(folder, name) for name in files)]:
            if not os.path.islink(path):
                mode = os.stat(path).st_mode
                os.chmod(path, mode | 0o200 if writable else mode & ~0o222)


def _listing(root: Path) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
