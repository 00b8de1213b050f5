"""Prometheus' rules and Grafana's dashboard, against a Prometheus that watches real traffic."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from benchmarks.replicas import find_haproxy, proxy, replica_host
from tests.docker.monitored import DOCKER, Prometheus, prometheus
from tests.server_process import Process

DASHBOARD = DOCKER / "grafana/dashboards/detr.json"
PANELS = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
ALERTS = [
    rule
    for group in yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
OPERATIONS = (DOCKER.parent / "docs/operations.md").read_text()

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or find_haproxy() is None,
    reason="Prometheus or HAProxy is not installed: make peers",
)


@pytest.fixture(scope="module")
def watched(
    toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory, png_bytes: bytes
) -> Iterator[Prometheus]:
    """Two replicas that have had traffic of every kind while Prometheus was watching."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        front = stack.enter_context(proxy())
        front.hosts.extend([replica_host(0), replica_host(1)])
        replicas = [Process(bundle=toy_bundle, host=host, port=front.port) for host in front.hosts]
        for replica in replicas:
            stack.callback(replica.end)
            stack.callback(replica.popen.kill)
        found = stack.enter_context(prometheus(front, folder))
        for replica in replicas:  # which the proxy takes for up until its first check
            replica.wait_until_ready(replica.read_address())
            replica.popen.send_signal(signal.SIGHUP)
        front.wait_for(2)
        found.wait_for("count(detr_ready) == 2")
        _send_traffic(front.address, png_bytes)
        found.wait_for("count(detr_images_total) == 2")
        _send_traffic(front.address, png_bytes)  # a rate is that of two scrapes
        found.wait_for("count(rate(detr_images_total[1m]) > 0) == 2")
        yield found


def _send_traffic(address: str, image: bytes) -> None:
    """Images, and files that are none."""
    url = f"{address}/detect"
    with ThreadPoolExecutor(4) as pool:
        for body in [image] * 8 + [b"no image"] * 8:
            pool.submit(httpx.post, url, content=body)


@needs_prometheus
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_of_the_dashboard_shows_what_was_measured(watched, panel):
    queries = [target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
               for target in panel["targets"]]  # fmt: skip

    answers = [watched.ask(query) for query in queries]

    assert all(answers)
    assert not [one for found in answers for one in found if one["value"][1] == "NaN"]


@needs_prometheus
def test_the_autoscaler_gets_the_wait_of_every_replica(watched):
    adapter = yaml.safe_load((DOCKER / "kubernetes/prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    query = (
        rule["metricsQuery"]
        .replace("<<.LabelMatchers>>", 'job="detr"')
        .replace("<<.GroupBy>>", "instance")
    )

    waits = [float(one["value"][1]) for one in watched.ask(query)]

    assert len(waits) == 2
    assert all(0 <= wait < 10 for wait in waits)


@needs_prometheus
def test_no_alert_is_raised_by_a_service_that_is_well(watched):
    watched.wait_for("detr_ready == 1")

    assert watched.ask('ALERTS{alertname!="DetrReloadRefused"}') == []


@needs_prometheus
def test_prometheus_accepts_the_configuration_as_it_is():
    result = _promtool("check", "config", DOCKER / "prometheus/prometheus.yml")

    assert result.returncode == 0, result.stdout + result.stderr


@needs_prometheus
def test_every_alert_is_raised_by_its_fault_and_not_without():
    cases = Path(__file__).with_name("alerts_test.yml")

    result = _promtool("test", "rules", cases)

    assert result.returncode == 0, result.stdout + result.stderr
    expected = {one["alertname"] for test in yaml.safe_load(cases.read_text())["tests"]
                for one in test["alert_rule_test"] if one.get("exp_alerts")}  # fmt: skip
    assert expected == {rule["alert"] for rule in ALERTS}


def test_the_dashboard_has_no_field_that_grafana_does_not_know():
    register_default_plugins()
    written = json.loads(DASHBOARD.read_text())

    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))

    assert list(_lost(written, understood, "")) == []


def test_panels_do_not_overlap():
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in PANELS
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_asks_the_data_source_that_is_provisioned():
    (source,) = yaml.safe_load(
        (DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    (provider,) = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/detr.yml").read_text())[
        "providers"
    ]
    mounts = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())["services"]["grafana"][
        "volumes"
    ]

    assert source["type"] == "prometheus"
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_runbook_has_every_alert_and_no_other():
    assert set(re.findall(r"^#### (Detr\w+)$", OPERATIONS, flags=re.M)) == {
        rule["alert"] for rule in ALERTS
    }


def _lost(written: Any, understood: Any, path: str) -> Iterator[str]:
    """Where the second lacks or changes what the first has."""
    if isinstance(written, dict) and isinstance(understood, dict):
        for key, value in written.items():
            yield from _lost(value, understood.get(key, "nothing"), f"{path}/{key}")
    elif isinstance(written, list) and isinstance(understood, list):
        for index, (one, other) in enumerate(zip(written, understood, strict=True)):
            yield from _lost(one, other, f"{path}/{index}")
    elif written != understood:
        yield f"{path}: {written!r} became {understood!r}"


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True)
