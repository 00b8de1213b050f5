"""How an engine is opened for a bundle whose directory does not stay as it was."""

import shutil
from pathlib import Path

import pytest

from bundle.manifest import Bundle
from service.settings import Settings
from service.startup import CannotStart, start_engine
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(fake_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fake_bundle, tmp_path / "bundle")


@pytest.fixture
def alike(fake_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with the same graph and known answers, but another name."""
    directory = shutil.copytree(fake_bundle, tmp_path / "alike")
    Bundle.load(directory).with_manifest(name="other").save()
    return directory


@pytest.mark.parametrize("other", ["alike", "toy_bundle"])
async def test_a_bundle_that_is_replaced_while_its_engine_opens_is_not_served(
    directory: Path, settings: Settings, other: str, request: pytest.FixtureRequest
) -> None:
    bundle, engine = Bundle.load(directory), FakeEngine()
    place: Path = request.getfixturevalue(other)

    def replace_and_open(*_: object) -> FakeEngine:
        shutil.rmtree(directory)
        shutil.copytree(place, directory)
        return engine

    with pytest.raises(CannotStart, match="another bundle was put there while this one"):
        await start_engine(bundle, settings, open_it=replace_and_open)

    assert engine.is_closed
