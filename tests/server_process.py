"""The service as a process of its own, on a real port."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx


class Process:
    """A running service; its log goes to `log` from the line on that tells its address."""

    def __init__(self, **settings: object) -> None:
        self.log: list[str] = []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DETR_")}
        environment |= {f"DETR_{name.upper()}": str(value) for name, value in settings.items()}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_address(self) -> str:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            found = re.search(r"page is at (http://\S+)/ and", line)
            if found:
                # The log goes on; were the pipe left full, the service would block.
                threading.Thread(target=self._follow_log, daemon=True).start()
                return found[1]
        raise AssertionError("the service told no address")

    def _follow_log(self) -> None:
        assert self.popen.stderr is not None
        with contextlib.suppress(ValueError):  # closed by the end of the test
            self.log.extend(self.popen.stderr)

    def rss_mb(self) -> float:
        """Memory that the process holds now."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def wait_until_ready(self, address: str) -> None:
        while httpx.get(f"{address}/readyz").status_code != 200:
            assert self.popen.poll() is None

    def end(self) -> tuple[int, str]:
        _, log = self.popen.communicate(timeout=60)
        return self.popen.returncode, log
