"""How a command starts: Ctrl-C while it imports, and a reader of its output that has ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__main__")
    for package in ("export", "model", "service")
    for path in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
# Runs a command, and presses Ctrl-C when it imports one of some modules.
INTERRUPTED = """
import os, runpy, signal, sys
command, modules, *sys.argv[1:] = sys.argv[1:]
class Finder:
    def find_spec(name, path, target=None):
        if name in modules.split(","):
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder)
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


def interrupt(command: str, modules: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, command, modules, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


# The service says that it stops: tests/service/test_early_signals.py.
@pytest.mark.parametrize("command", [*sorted({*COMMANDS} - {"service"}), "benchmarks.reproduce"])
def test_a_command_that_imports_ends_without_a_trace(command: str) -> None:
    done = interrupt(command, "argparse,asyncio")

    assert (done.returncode, done.stderr) == (-2, "")  # a shell reports 130


def test_a_command_at_work_says_what_became_of_it() -> None:
    done = interrupt("service.detect", "openvino", "bundles/demo/samples/1.png")

    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted: no results written"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_goes_on_when_nobody_reads_its_output(stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    work = f"""
import sys
from bundle.command import begin_command
begin_command()
for _ in range(2):
    print("x" * 100_000, file=sys.{stream})
sys.exit(3)
"""

    done = subprocess.run(
        [sys.executable, "-c", work],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer},  # type: ignore[call-overload]
        cwd=ROOT,
        timeout=60,
    )
    os.close(writer)

    assert done.returncode == 3
    assert not done.stdout
    assert not done.stderr


def test_output_that_is_read_is_as_it_was() -> None:
    work = "from bundle.command import begin_command\nbegin_command()\nprint('B\u00e4r')"

    done = subprocess.run(
        [sys.executable, "-c", work],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        stdout=subprocess.PIPE,
        timeout=60,
    )

    assert done.stdout == b"B\xe4r\n"


SIGNALLED = """
import signal, sys
from bundle.command import while_it_is_read
sys.stderr = while_it_is_read(sys.stderr)
signal.signal(signal.SIGALRM, lambda *_: sys.stderr.write("handled\\n"))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for _ in range(60_000):
    sys.stderr.write("written\\n")
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_the_handler_of_a_signal_may_write_while_something_is_written() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "handled" in ended.stderr
