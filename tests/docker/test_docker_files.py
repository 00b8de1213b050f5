"""The Dockerfiles and the compose file, checked without an engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bundle.layout import CACHE_FOLDER
from service.__main__ import GRACE_S
from service.settings import Settings
from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))
COMPOSE = ROOT / "docker/docker-compose.yml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    result = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_copied_path_exists_and_is_let_through_to_the_builder(path):
    allowed = (ROOT / ".dockerignore").read_text().split()
    copies = [rest.split() for keyword, rest in dockerfile.instructions(path.read_text())
              if keyword == "COPY" and not rest.startswith("--from")]  # fmt: skip
    sources = [source for *names, _ in copies for source in names]

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if f"!{source}" not in allowed
            and f"!{source.split('/')[0]}/" not in allowed] == []  # fmt: skip


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_base_images_carry_a_full_version(path):
    bases = [rest.split()[0] for keyword, rest in dockerfile.instructions(path.read_text())
             if keyword == "FROM"]  # fmt: skip

    versions = {base.split("-")[0] for base in bases if base.startswith("python:")}
    assert len(versions) <= 1
    assert all(version.count(".") == 2 for version in versions)
    others = [base for base in bases if not base.startswith("python:")]
    assert [
        base
        for base in others
        if not re.fullmatch(r"nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3", base)
    ] == []


def test_the_compose_file_follows_the_compose_specification():
    result = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_compose_service_is_confined(name):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["profiles"] in (["cpu"], ["replicas"], ["gpu"])


def test_the_services_are_reachable_from_this_machine_only_until_told_otherwise():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published.keys() == {
        *("service", "service-gpu", "service-torch", "proxy", "prometheus", "grafana")
    }
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def settings_given_to(name: str) -> dict[str, str]:
    """What compose makes of ${NAME:-default} where NAME is not set."""
    return {name.lower().removeprefix("detr_"): re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
            for name, value in SERVICES[name]["environment"].items()}  # fmt: skip


@pytest.mark.parametrize("name", ["service", "replica", "service-gpu", "service-torch"])
def test_compose_gives_a_service_time_to_stop(name):
    settings = Settings.model_validate(settings_given_to(name))
    given_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))

    assert given_s > settings.drain_delay_s + settings.drain_timeout_s + GRACE_S


@pytest.mark.parametrize("name", ["service", "replica", "service-gpu", "service-torch"])
def test_compose_gives_the_service_settings_that_it_has(name):
    given = settings_given_to(name)

    settings = Settings.model_validate(given)

    assert settings.model_fields_set == given.keys() <= Settings.model_fields.keys()
    assert settings.bundle == Path("/bundle")


def test_the_service_on_a_gpu_may_write_only_to_the_cache_of_its_bundle():
    bundle, cache = SERVICES["service-gpu"]["volumes"]

    host_folder = bundle.removesuffix(":/bundle:ro")
    assert cache == f"{host_folder}/{CACHE_FOLDER}:/bundle/{CACHE_FOLDER}"


@pytest.mark.parametrize("name", ["service-gpu", "service-torch", "train"])
def test_compose_reserves_a_gpu(name):
    (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
