"""The service in a separate process, on a real port."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx


class Process:
    """A running service, or another module that runs one, with its settings; its log is kept.

    `launcher` is a command that becomes another one, which it gets as arguments.
    """

    def __init__(self, *command: str, launcher: Sequence[str] = (), **settings: object) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DETR_")}
        environment |= {f"DETR_{name.upper()}": str(value) for name, value in settings.items()}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        self.popen = subprocess.Popen(
            [*launcher, sys.executable, "-m", *(command or ("service",))],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._address = ""
        self._has_told = threading.Event()  # its address, or all that it had to say
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def read_address(self) -> str:
        assert self._has_told.wait(timeout=60)
        assert self._address, "".join(self.log)
        return self._address

    def rss_mb(self) -> float:
        """Memory that the process holds now."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def wait_until_ready(self, address: str) -> None:
        while httpx.get(f"{address}/readyz").status_code != 200:
            assert self.popen.poll() is None

    def start(self) -> str:
        """Its address, once it is ready."""
        address = self.read_address()
        self.wait_until_ready(address)
        return address

    def stop(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """Wait until it ends: its exit status and its log."""
        status = self.popen.wait(timeout=60)
        self._reader.join(timeout=60)
        return status, "".join(self.log)

    def _read(self) -> None:
        assert self.popen.stderr is not None
        with self.popen.stderr as log:
            for line in log:
                self.log.append(line)
                found = re.search(r"page is at (http://\S+)/ and", line)
                if found:
                    self._address = found[1]
                    self._has_told.set()
        self._has_told.set()
