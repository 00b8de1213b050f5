"""AP of a cut-up set: small objects in images many times as large as the model's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.detect import detect
from bundle.manifest import Bundle
from bundle.preprocess import Uint8Array
from engines.load import open_engine
from model.data.digits import DigitsDataset
from model.evaluation.coco_metrics import score

SIDE_PX = 128  # of a validation image of the demo
ROW = 3  # images in a row of a canvas, and rows
NUM_CANVASES = 4


def make_canvases() -> tuple[list[Uint8Array], dict[str, Any]]:
    """Nine validation images each as one of 384 x 384 pixels, and where the digits are."""
    data = DigitsDataset("val", num_images=NUM_CANVASES * ROW * ROW)
    canvases = [np.zeros((ROW * SIDE_PX, ROW * SIDE_PX, 3), np.uint8) for _ in range(NUM_CANVASES)]
    offsets = {}
    for index in range(len(data)):
        canvas_id, place = divmod(index, ROW * ROW)
        top, left = (SIDE_PX * step for step in divmod(place, ROW))
        canvases[canvas_id][top : top + SIDE_PX, left : left + SIDE_PX] = data.read_image(index)
        offsets[data.image_id(index)] = canvas_id, left, top
    truth = data.ground_truth()
    annotations = []
    for entry in truth["annotations"]:
        canvas_id, left, top = offsets[entry["image_id"]]
        x, y, width, height = entry["bbox"]
        box = [x + left, y + top, width, height]
        annotations.append({**entry, "image_id": canvas_id, "bbox": box})
    images = [{"id": number, "width": ROW * SIDE_PX, "height": ROW * SIDE_PX}
              for number in range(NUM_CANVASES)]  # fmt: skip
    return canvases, {**truth, "images": images, "annotations": annotations}


@pytest.fixture(scope="module")
def ap() -> dict[int | None, float]:
    """AP by the side of the tiles; None is without."""
    canvases, truth = make_canvases()
    bundle = Bundle.load(Path("bundles/demo"))
    engine, manifest = open_engine(bundle), bundle.manifest
    found = {}
    for tile in (None, SIDE_PX):
        results = []
        for image_id, canvas in enumerate(canvases):
            (one,) = detect(engine.run, [canvas], preprocess=manifest.preprocess, tile_px=tile)
            columns = one.boxes_xywh_px.tolist(), one.scores.tolist(), one.labels.tolist()
            results += [
                {"image_id": image_id, "category_id": manifest.classes[k].id, "bbox": b, "score": s}
                for b, s, k in zip(*columns, strict=True)
            ]
        found[tile] = score(truth, results).numbers["AP"]
    engine.close()
    return found


def test_tiles_find_what_is_too_small_in_the_whole(ap: dict[int | None, float]) -> None:
    assert ap[None] < 0.15
    assert ap[SIDE_PX] > 0.6
