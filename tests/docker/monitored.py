"""Prometheus, with the files of docker/prometheus, watching replicas behind the proxy."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.replicas import Proxy, free_port

DOCKER = Path(__file__).parents[2] / "docker"
LIMIT_S = 60


class Prometheus:
    """A running Prometheus."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        answer = httpx.get(f"{self.address}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def wait_for(self, expression: str) -> None:
        """Until an expression gives a series."""
        deadline = time.monotonic() + LIMIT_S
        while not self.ask(expression):
            assert time.monotonic() < deadline, (expression, self.ask("up"))
            time.sleep(0.1)


@contextmanager
def prometheus(proxy: Proxy, folder: Path) -> Iterator[Prometheus]:
    """The shipped configuration, but it scrapes every second and lists the replicas directly."""
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    detr, haproxy = config["scrape_configs"]
    del detr["dns_sd_configs"]
    detr["static_configs"] = [{"targets": [f"{host}:{proxy.port}" for host in proxy.hosts]}]
    haproxy["static_configs"] = [{"targets": [proxy.metrics_address.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(json.dumps(config))
    shutil.copy(DOCKER / "prometheus/alerts.yml", folder)
    port = free_port()
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + LIMIT_S
        while not _is_ready(found):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield found
    finally:
        process.kill()
        process.wait()


def _is_ready(found: Prometheus) -> bool:
    try:
        return httpx.get(f"{found.address}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
