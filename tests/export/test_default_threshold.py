"""What export says of the threshold that requests get which name none."""

from pathlib import Path

import pytest

from bundle.manifest import Manifest
from export.recipe import tell_default_threshold


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({}, "as the checkpoint was not evaluated"),
        ({"AP": 0.0}, "as the checkpoint finds no object of its validation images"),
    ],
)
def test_an_ap_of_0_is_no_missing_ap(
    toy_bundle: Path,
    caplog: pytest.LogCaptureFixture,
    metrics: dict[str, float],
    reason: str,
) -> None:
    changes = {"metrics": metrics, "thresholds": None}

    tell_default_threshold(Manifest.load(toy_bundle).model_copy(update=changes))

    assert reason in caplog.text
