"""Identifies the processor by all that decides which code runs on it, and how fast.

On a virtual machine its name may be no more than "AMD EPYC", whatever its instructions are.
"""

import platform
from pathlib import Path

# The lines of /proc/cpuinfo that neither change with time nor differ from core to core.
_FIELDS = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # Arm
}


def describe_processor(file_system: Path = Path("/")) -> str:
    """Maker, model, size of the cache and instructions, where the system says them."""
    try:
        lines = (file_system / "proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        lines = []
    told = [line for line in lines if line.partition(":")[0].strip() in _FIELDS]
    return "; ".join(told or [platform.machine(), platform.processor()])
