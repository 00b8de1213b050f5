"""What all tests share: fixed seeds, sample images, and a bundle that needs no training."""

import gc
import io
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from PIL import Image

import engines  # noqa: F401  # before any test imports OpenVINO, which would report it
from tests.server_process import Process
from tests.toy_bundle import make_toy_bundle

# Examples are the same in every run, and a slow machine is not a failure.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A script that runs the tests in the background makes them, and all they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests take minutes, the longest first.
LONGEST = (
    "test_tensorrt_plan.py",
    "test_ray.py",
    "test_recipe.py",
    "test_broken_runs.py",
    "test_service_image.py",
    "test_finetune_page.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """If processes share the tests, each begins with long files; inside a file nothing changes.

    Every process gets an equal part, one after the other. When it is done, it takes over the end of
    another's part, which is why short tests come last.
    """
    if not hasattr(config, "workerinput"):
        return
    count = config.workerinput["workercount"]
    by_path: dict[Path, list[pytest.Item]] = {}
    for item in items:
        by_path.setdefault(item.path, []).append(item)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    long = sorted(slow, key=lambda path: (_rank(path), str(path)))
    short = [item for item in items if item.path not in slow]
    ordered: list[pytest.Item] = []
    for number in range(count):
        size = (len(items) - len(ordered)) // (count - number)
        share = [item for path in long[number::count] for item in by_path[path]]
        num_short = max(0, size - len(share))
        ordered += share + short[:num_short]
        short = short[num_short:]
    items[:] = ordered


def _rank(path: Path) -> int:
    return LONGEST.index(path.name) if path.name in LONGEST else len(LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Nearly all that is made from here to the end of the collection stays until the end."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what is there before the first test."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the toy bundle; all tests share it, so only change a copy."""
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    make_toy_bundle(directory)
    return directory


@pytest.fixture(scope="module")
def start(toy_bundle: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*command: str, launcher: Sequence[str] = (), **settings: object) -> Process:
        settings = {"bundle": toy_bundle, "port": 0} | settings
        processes.append(Process(*command, launcher=launcher, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.popen.kill()
        process.end()


@pytest.fixture(scope="session")
def address(toy_bundle: Path) -> Iterator[str]:
    """Address of a process that serves the toy bundle, for tests that only send requests."""
    process = Process(bundle=toy_bundle, port=0)
    yield process.start()
    process.stop()
    process.end()


@pytest.fixture(scope="session")
def scene() -> npt.NDArray[np.uint8]:
    """(96, 128, 3) uint8 RGB, with a red thing and a green one for the toy graph to find.

    Red: x 16..64, y 24..72, score 230 / 255. Green: x 80..112, y 8..40, score 200 / 255.
    """
    image = np.full((96, 128, 3), 40, np.uint8)
    image[24:72, 16:64] = (230, 0, 0)
    image[8:40, 80:112] = (0, 200, 0)
    return image


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """A function from pixels (H, W[, 3 or 4]) uint8 or a Pillow image to the bytes of a file."""

    def encode(image: npt.NDArray[np.uint8] | Image.Image, image_format: str, **options: object):
        buffer = io.BytesIO()
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(buffer, image_format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def jpeg_bytes(scene: npt.NDArray[np.uint8], encode: Callable[..., bytes]) -> bytes:
    return encode(scene, "JPEG", quality=95)


@pytest.fixture(scope="session")
def png_bytes(scene: npt.NDArray[np.uint8], encode: Callable[..., bytes]) -> bytes:
    return encode(scene, "PNG")


@pytest.fixture(scope="session")
def webp_bytes(scene: npt.NDArray[np.uint8], encode: Callable[..., bytes]) -> bytes:
    return encode(scene, "WEBP", lossless=True)
