"""The machine and the versions that a table of results was measured with."""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def cpu_name() -> str:
    """The kernel's name for the processor."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return platform.processor() or platform.machine()


def describe_machine(packages: Sequence[str]) -> str:
    """Processor, cores, and versions of Python, of the packages that there are, of this project."""
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return f"{cpu_name()}, {os.cpu_count()} cores; {', '.join(versions)}{_commit()}"


def today() -> str:
    """The date, as in the names of results."""
    return time.strftime("%Y-%m-%d")


def _commit() -> str:
    """The commit of this project, and whether files were changed since; nothing without git."""
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return f", commit {found.stdout.strip()}"
    return ""


def cpu_seconds(group: int) -> float:
    """The CPU time of all processes of a group so far."""
    num_ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                num_ticks += sum(map(int, fields[11:15]))  # its own, and of children that ended
    return num_ticks / os.sysconf("SC_CLK_TCK")
