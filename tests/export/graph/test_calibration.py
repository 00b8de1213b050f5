import numpy as np
import onnx_ir as ir
import pytest

from bundle.manifest import ClassInfo
from bundle.preprocess import Preprocess
from export.graph.calibration import NUM_IMAGES, measure_ranges

PREPROCESS = Preprocess(short_side=4, long_side=8)
# `output` cannot be computed: what calibration does not ask for must not be run.
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
graph (uint8[batch, height, width, 3] images, bool[batch, height, width] padding_mask)
    => (float[five, seven] output) {
    pixels = Cast <to = 1> (images)
    negative = Neg (pixels)
    logarithms = Log (pixels)
    shape = Constant <value_ints = [5, 7]> ()
    output = Reshape (negative, shape)
}
"""


class GreyImages:
    """Images of one brightness each, every other one upright; notes which were read."""

    def __init__(self, values):
        self.values = values
        self.indices_read = []

    classes: tuple[ClassInfo, ...] = ()

    def __len__(self):
        return len(self.values)

    def image_id(self, index):
        raise NotImplementedError

    def ground_truth(self):
        raise NotImplementedError

    def read_image(self, index):
        self.indices_read.append(index)
        height, width = (4, 6) if index % 2 else (6, 4)
        return np.full((height, width, 3), self.values[index], np.uint8)


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    ir.save(ir.from_onnx_text(GRAPH), path)
    return path


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_range_is_the_largest_magnitude_on_average_over_images(graph, batch_size):
    images = GreyImages([10, 20, 90])

    ranges = measure_ranges(
        graph, ["negative"], dataset=images, preprocess=PREPROCESS, batch_size=batch_size
    )

    assert ranges == {"negative": 40.0}


def test_of_many_images_some_are_taken_evenly(graph):
    images = GreyImages([1] * 5 * NUM_IMAGES)

    measure_ranges(graph, ["pixels"], dataset=images, preprocess=PREPROCESS, batch_size=8)

    assert images.indices_read == list(range(0, 5 * NUM_IMAGES, 5))


def test_without_images_there_is_no_calibration(graph):
    images = GreyImages([])

    with pytest.raises(ValueError, match="at least one image to calibrate on"):
        measure_ranges(graph, ["pixels"], dataset=images, preprocess=PREPROCESS, batch_size=1)


def test_activations_that_are_not_finite_are_named(graph):
    images = GreyImages([0, 5])

    with pytest.raises(ValueError, match=r"not finite: \['logarithms'\]"):
        measure_ranges(graph, ["logarithms"], dataset=images, preprocess=PREPROCESS, batch_size=1)
