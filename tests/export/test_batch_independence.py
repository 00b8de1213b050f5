"""What an engine answers for an image does not depend on the images that share its batch."""

from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from bundle.preprocess import pad_batch
from engines.base import Engine
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.cpu.openvino_engine import OpenVinoEngine
from export.judge.verify import Difference, difference
from model.config import Variant
from model.network.inference import torch_predictor
from tests.export.conftest import Exported

pytestmark = pytest.mark.slow

Size = tuple[int, int]
ENGINES = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
MAX_SCORE_ERROR = 0.001
MAX_BOX_ERROR_PX = 0.05
SIDES = st.integers(1, 160)
# Of these sides, levels have 50, 100 or 150 cells, whose outermost centres are at 1% and 99%.
EXACT_SIDES = [400, 800, 1200]


@pytest.fixture(scope="module", params=ENGINES)
def open_engine(
    request: pytest.FixtureRequest, exported: Callable[[Variant], Exported]
) -> Iterator[Callable[[Variant], Engine]]:
    """A function from a variant to its bundle, opened in one of the engines of a CPU."""
    opened: dict[Variant, Engine] = {}

    def open_variant(variant: Variant) -> Engine:
        if variant not in opened:
            small = exported(variant)
            opened[variant] = ENGINES[request.param](Bundle(small.directory, small.manifest))
        return opened[variant]

    yield open_variant
    for engine in opened.values():
        engine.close()


def _images(sizes: list[Size]) -> list[npt.NDArray[np.uint8]]:
    """Noise; images of an even height are of one colour, so that scores are as equal as can be."""
    return [
        np.random.default_rng(size).integers(
            *(0, 256), (*size, 3) if size[0] % 2 else (1, 1, 3), dtype=np.uint8
        )
        + np.zeros((*size, 1), np.uint8)
        for size in sizes
    ]


def _differences(small: Exported, engine: Engine, sizes: list[Size]) -> list[Difference]:
    """Of each image: PyTorch alone against the engine in one batch, boxes in pixels."""
    images, min_side = _images(sizes), small.manifest.preprocess.min_side
    predict = torch_predictor(small.model)
    expected = [predict(*pad_batch([image], min_side)) for image in images]
    found = engine.run(*pad_batch(images, min_side))
    return [
        difference(one, RawOutput(scores[None], labels[None], boxes[None]))
        for one, (scores, labels, boxes) in zip(expected, found.rows(), strict=True)
    ]


@pytest.mark.parametrize("variant", list(Variant))
@settings(max_examples=8, derandomize=True, deadline=None)
@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=4))
def test_an_engine_answers_in_any_batch_what_the_model_answers_alone(
    open_engine: Callable[[Variant], Engine],
    exported: Callable[[Variant], Exported],
    variant: Variant,
    sizes: list[Size],
) -> None:
    found = _differences(exported(variant), open_engine(variant), sizes)

    assert max(apart.score_error for apart in found) < MAX_SCORE_ERROR
    assert max(apart.box_error for apart in found) * 160 < MAX_BOX_ERROR_PX


@pytest.mark.parametrize("is_high", [False, True], ids=["wide", "high"])
@pytest.mark.parametrize("neighbours", [[], [(97, 131)], [(131, 1300)]], ids=str)
@pytest.mark.parametrize("side", EXACT_SIDES)
def test_cells_at_one_percent_of_the_border_are_judged_alike_everywhere(
    open_engine: Callable[[Variant], Engine],
    exported: Callable[[Variant], Exported],
    side: int,
    neighbours: list[Size],
    is_high: bool,
) -> None:
    sizes = [(70, side), *neighbours]
    turned = [size[::-1] for size in sizes] if is_high else sizes

    found = _differences(exported(Variant.TWO_STAGE), open_engine(Variant.TWO_STAGE), turned)

    assert max(apart.score_error for apart in found) < 1e-4
    assert max(apart.box_error for apart in found) < 1e-4
