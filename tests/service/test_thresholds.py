"""The scores from which detections are answered: of the request, the bundle, or fixed."""

import shutil
from pathlib import Path

import pytest

from bundle.manifest import Bundle
from bundle.thresholds import OperatingPoint, Thresholds
from service.app import create_app
from service.detect import main
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import running

pytestmark = pytest.mark.anyio
# FakeEngine finds label 0, id 10, with score 0.9 and label 1, id 20, with 0.2.
OVERALL = OperatingPoint(threshold=0.5, precision=0.75, recall=1)
ONE_CLASS = OperatingPoint(threshold=0.15, precision=0.5, recall=0.5)


def with_thresholds(bundle: Path, directory: Path, thresholds: Thresholds | None) -> Path:
    shutil.copytree(bundle, directory)
    Bundle.load(directory).with_manifest(thresholds=thresholds).save()
    return directory


@pytest.mark.parametrize(
    ("thresholds", "query", "ids"),
    [
        (None, "", [10]),
        (None, "?threshold=0.1", [10, 20]),
        (Thresholds(overall=OVERALL), "", [10]),
        (Thresholds(overall=OVERALL, by_class={20: ONE_CLASS}), "", [10, 20]),
        (Thresholds(overall=ONE_CLASS, by_class={10: OVERALL}), "", [10, 20]),
        (Thresholds(overall=OVERALL, by_class={20: ONE_CLASS}), "?threshold=0.5", [10]),
        (Thresholds(overall=OVERALL), "?threshold=0", [10, 20]),
    ],
)
async def test_a_request_without_a_threshold_has_the_best_for_each_class(
    fake_bundle: Path,
    tmp_path: Path,
    png_bytes: bytes,
    thresholds: Thresholds | None,
    query: str,
    ids: list[int],
) -> None:
    bundle = with_thresholds(fake_bundle, tmp_path / "bundle", thresholds)

    async with running(create_app(Settings(bundle=bundle), lambda *_: FakeEngine())) as client:
        response = await client.post(f"/detect{query}", content=png_bytes)

    found = response.json()["results"][0]["detections"]
    assert [one["category_id"] for one in found] == ids


async def test_clients_of_deepstack_get_the_best_threshold_unless_they_ask_for_another(
    fake_bundle: Path, tmp_path: Path, png_bytes: bytes
) -> None:
    thresholds = Thresholds(overall=OVERALL, by_class={20: ONE_CLASS})
    bundle = with_thresholds(fake_bundle, tmp_path / "bundle", thresholds)
    files = {"image": png_bytes}

    async with running(create_app(Settings(bundle=bundle), lambda *_: FakeEngine())) as client:
        best = await client.post("/v1/vision/detection", files=files)
        other = await client.post(
            "/v1/vision/detection", files=files, data={"min_confidence": "0.5"}
        )

    assert len(best.json()["predictions"]) == 2
    assert len(other.json()["predictions"]) == 1


async def test_the_model_tells_its_thresholds(fake_bundle: Path, tmp_path: Path) -> None:
    thresholds = Thresholds(overall=OVERALL, by_class={20: ONE_CLASS})
    bundle = with_thresholds(fake_bundle, tmp_path / "bundle", thresholds)

    async with running(create_app(Settings(bundle=bundle), lambda *_: FakeEngine())) as client:
        model = (await client.get("/model")).json()

    assert model["threshold"] == 0.5
    assert model["thresholds"] == {
        "overall": {"threshold": 0.5, "precision": 0.75, "recall": 1.0},
        "by_class": {"20": {"threshold": 0.15, "precision": 0.5, "recall": 0.5}},
    }


async def test_a_bundle_without_thresholds_starts_at_a_fixed_one_and_says_so(
    fake_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async with running(create_app(Settings(bundle=fake_bundle), lambda *_: FakeEngine())) as client:
        model = (await client.get("/model")).json()

    assert (model["threshold"], model["thresholds"]) == (0.3, None)
    assert "use 0.3 for every class: the bundle has no thresholds of its own" in caplog.text


def test_the_command_line_starts_from_the_best_threshold_of_each_class(
    toy_bundle: Path, tmp_path: Path, png_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    thresholds = Thresholds(
        overall=OperatingPoint(threshold=0.01, precision=1, recall=1),
        by_class={10: OperatingPoint(threshold=0.95, precision=1, recall=1)},
    )
    bundle = with_thresholds(toy_bundle, tmp_path / "bundle", thresholds)
    (tmp_path / "scene.png").write_bytes(png_bytes)

    main([str(tmp_path / "scene.png"), "--bundle", str(bundle)])

    out = capsys.readouterr().out
    assert '"red"' not in out
    assert '"green"' in out
