"""What a process frees is kept for its next use."""

import ctypes
import subprocess
import sys

import pytest

# Prints the page faults of using 16 MiB after it was freed, as often as after a layer of a model.
PROGRAM = """
import ctypes, resource
from model.training.freed_memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults_of_use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 24)
    libc.memset(block, 1, 1 << 24)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{adjust}
faults_of_use()
print(faults_of_use())
"""
is_glibc = hasattr(ctypes.CDLL(None), "mallopt")


def faults(adjust: str) -> int:
    program = [sys.executable, "-c", PROGRAM.format(adjust=adjust)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not is_glibc, reason="only glibc can be told")
def test_memory_is_used_again_without_page_faults() -> None:
    assert faults("") > 1000
    assert faults("keep_freed_memory()") < 100
