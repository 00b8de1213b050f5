"""The manifests for Kubernetes, against its schemas and against the service."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.__main__ import GRACE_S
from service.app import create_app
from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "docker/kubernetes"
MANIFESTS = list(yaml.safe_load_all((FOLDER / "detr-serve.yaml").read_text()))
BY_KIND: dict[str, dict[str, Any]] = {manifest["kind"]: manifest for manifest in MANIFESTS}
POD = BY_KIND["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("kind", BY_KIND)
def test_a_manifest_follows_the_schema(kind, version):
    kubernetes_validate.validate(BY_KIND[kind], version, strict=True)


def test_a_misspelt_field_would_be_found():
    wrong = BY_KIND["Service"] | {"specs": {}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_everything_selects_the_pods_of_the_deployment():
    labels = POD["metadata"]["labels"]

    assert BY_KIND["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert BY_KIND["Service"]["spec"]["selector"] == labels
    assert BY_KIND["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = BY_KIND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == BY_KIND["Deployment"]["metadata"]["name"]
    assert target["kind"] == "Deployment"


def test_probes_ask_routes_that_need_no_key(toy_bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sixteen-characters\n")
    app = create_app(Settings(bundle=toy_bundle, api_keys_file=keys))
    paths = set(app.openapi()["paths"])

    asked = {CONTAINER[f"{kind}Probe"]["httpGet"]["path"]
             for kind in ("startup", "readiness", "liveness")}  # fmt: skip

    assert asked == {"/readyz", "/healthz"} <= paths


def test_a_pod_has_time_to_start_and_to_drain():
    given = {one["name"].removeprefix("DETR_").lower(): one["value"] for one in CONTAINER["env"]}
    settings = Settings.model_validate(given)
    startup, readiness = CONTAINER["startupProbe"], CONTAINER["readinessProbe"]

    assert settings.model_fields_set == given.keys() <= Settings.model_fields.keys()
    drain_s = settings.drain_delay_s + settings.drain_timeout_s
    assert POD["spec"]["terminationGracePeriodSeconds"] > drain_s + GRACE_S
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < settings.drain_delay_s
    assert startup["periodSeconds"] * startup["failureThreshold"] > settings.start_timeout_s


def test_the_container_is_confined():
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert CONTAINER["resources"]["limits"].keys() == {"cpu", "memory"}


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes():
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (metric,) = BY_KIND["HorizontalPodAutoscaler"]["spec"]["metrics"]

    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
