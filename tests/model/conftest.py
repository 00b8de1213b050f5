"""What tests of the model share."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.data.loading import open_data
from model.training.loop import train
from tests.model.runs import run_config, write_images


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 100 kB while the test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def terminal_signals() -> Iterator[None]:
    """Signals as in a terminal, even if the tests themselves run in the background or by nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four epochs went in one session."""
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    config = run_config()
    assert train(config, open_data(config, images), out_dir=out_dir) == 0
    return out_dir
