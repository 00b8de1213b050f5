"""Memory that threads have freed goes back to the system."""

import subprocess
import sys

SCRIPT = """
import threading
from pathlib import Path

from service.freed_memory import give_memory_back, share_one_heap

share_one_heap()
all_have = threading.Barrier(4)

def work():
    for _ in range(2):  # once it has freed one, the C library takes the next from a heap
        body = b"x" * 29_000_000
        all_have.wait()
        del body

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
give_memory_back()
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmRSS:")[2].split()[0]) // 1024)
"""


def test_no_thread_keeps_what_it_has_freed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )

    assert int(done.stdout) < 2 * 29  # MB; 122 with a heap for each thread
