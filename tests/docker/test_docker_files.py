"""The Dockerfiles and the compose file, checked without an engine."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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

    versions = {base.split("-")[0] for base in bases}
    assert len(versions) == 1
    assert versions.pop().count(".") == 2


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
    assert service["profiles"] in (["cpu"], ["gpu"])


def test_the_service_is_reachable_from_this_machine_only_until_told_otherwise():
    (port,) = SERVICES["service"]["ports"]

    assert port.startswith("127.0.0.1:")
