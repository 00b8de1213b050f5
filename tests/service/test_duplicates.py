"""Boxes of one class that overlap, as a model that finds an object twice has them."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bundle.known_answers import read_known_answers, write_known_answers
from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.asking import running

pytestmark = pytest.mark.anyio


class TwiceEngine(FakeEngine):
    """Both of its boxes, whose IoU is 1/7, are of label 0."""

    def run(self, images: npt.NDArray[np.uint8], padding_mask: npt.NDArray[np.bool_]) -> RawOutput:
        output = super().run(images, padding_mask)
        return output._replace(labels=np.zeros_like(output.labels))


@pytest.fixture
def bundle(fake_bundle: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "twice"
    shutil.copytree(fake_bundle, directory)
    bundle = Bundle.load(directory)
    images = [answer.image for answer in read_known_answers(directory)]
    preprocess = bundle.manifest.preprocess
    write_known_answers(directory, TwiceEngine().run, preprocess=preprocess, images=images)
    bundle.save()
    return directory


@pytest.mark.parametrize(
    ("query", "scores"),
    [
        ("", [0.9, 0.2]),
        ("&nms_iou=0.2", [0.9, 0.2]),
        ("&nms_iou=0.1", [0.9]),
        ("&nms_iou=0", [0.9]),
    ],
)
async def test_the_worse_of_two_goes_where_it_is_asked_for(
    bundle: Path, png_bytes: bytes, query: str, scores: list[float]
) -> None:
    async with running(create_app(Settings(bundle=bundle), lambda *_: TwiceEngine())) as client:
        response = await client.post(f"/detect?threshold=0{query}", content=png_bytes)

    found = response.json()["results"][0]["detections"]
    assert [one["score"] for one in found] == pytest.approx(scores)
