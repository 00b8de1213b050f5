"""Signals that reach python -m service while it imports, reads its bundle or opens its engine."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.server_process import Process

# Runs the module that is named last, and sends itself a signal when that imports asyncio.
INTERRUPTED = """
import os, runpy, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "asyncio":
            os.kill(os.getpid(), {number:d})
sys.meta_path.insert(0, Finder)
module, sys.argv = sys.argv[-1], sys.argv[-1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

Start = Callable[..., Process]


def interrupted_by(number: signal.Signals) -> list[str]:
    return [sys.executable, "-c", INTERRUPTED.format(number=number)]


def wait_until_reloaded(address: str) -> None:
    while 'result="swapped"' not in httpx.get(f"{address}/metrics").text:
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_imports_ends_in_one_line(start: Start, number: signal.Signals) -> None:
    status, log = start(launcher=interrupted_by(number)).end()

    assert (status, log) == (0, f"stopped by {number.name} before the service was started\n")


def test_sighup_does_not_kill_a_service_that_imports(start: Start) -> None:
    process = start(launcher=interrupted_by(signal.SIGHUP))

    wait_until_reloaded(process.start())
    process.stop()

    assert process.end()[0] == 0


def test_sighup_while_the_engine_opens_reloads_once_it_serves(
    start: Start, fake_bundle: Path
) -> None:
    """The bundle has been read by then, and another one may be in its place."""
    process = start("tests.service.breaking_service", "hangs-up-at-start", bundle=fake_bundle)

    wait_until_reloaded(process.start())
    process.stop()

    status, log = process.end()
    assert (status, log.count("now serves instead of")) == (0, 1)
    assert "not reloaded" not in log


def test_signals_without_a_meaning_change_nothing(start: Start, fake_bundle: Path) -> None:
    process = start("tests.service.breaking_service", "none", bundle=fake_bundle)
    address = process.start()

    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        process.popen.send_signal(number)

    assert httpx.get(f"{address}/readyz").status_code == 200
    process.stop()
    assert process.end()[0] == 0
