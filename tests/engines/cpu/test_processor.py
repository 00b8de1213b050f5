import platform
from pathlib import Path

import pytest

from engines.cpu.processor import describe_processor

X86 = """processor\t: {number}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
cpu MHz\t\t: {mhz}
cache size\t: 512 KB
flags\t\t: fpu sse2 {flags}
bogomips\t: 4899.99

"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd {flags}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def described(tmp_path: Path, text: str) -> str:
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    return describe_processor(tmp_path)


@pytest.mark.parametrize("text", [X86, ARM], ids=["x86", "Arm"])
def test_processors_of_one_name_differ_by_their_instructions(tmp_path: Path, text: str) -> None:
    old, new = (
        described(tmp_path, text.format(number=0, mhz=2449, flags=flags))
        for flags in ("avx2", "avx2 avx512f")
    )

    assert old != new
    assert "avx512f" in new


def test_a_processor_is_the_same_at_any_clock_and_whichever_core_is_first(tmp_path: Path) -> None:
    first, second = (
        described(tmp_path, "".join(X86.format(number=n, mhz=m, flags="avx2") for n, m in cores))
        for cores in (((0, 2449), (1, 3000)), ((1, 2600.123), (0, 1500)))
    )

    assert first == second


def test_a_system_that_does_not_say_is_told_by_its_kind(tmp_path: Path) -> None:
    assert platform.machine() in describe_processor(tmp_path)
