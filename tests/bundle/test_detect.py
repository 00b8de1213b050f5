"""The one way from images to detections, with a stand-in for the graph."""

import numpy as np

from bundle.detect import detect, make_batch, run_images
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray, Preprocess, Uint8Array

PREPROCESS = Preprocess(short_side=50, long_side=100)
LANDSCAPE = np.full((100, 200, 3), 7, np.uint8)
PORTRAIT = np.full((80, 40, 3), 9, np.uint8)


def whole_image(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
    """Everything as label 1, with the brightness of the first pixel for a score; then nothing."""
    scores = np.stack([images[:, 0, 0, 0] / 10, np.zeros(len(images))], axis=1)
    labels = np.tile(np.array([1, 0]), (len(images), 1))
    boxes = np.tile(np.array([[0, 0, 1, 1], [0, 0, 0, 0]], "f4"), (len(images), 1, 1))
    return RawOutput(scores.astype(np.float32), labels, boxes)


def test_a_batch_holds_every_image_resized_and_says_what_is_padding() -> None:
    batch = make_batch([LANDSCAPE, PORTRAIT], PREPROCESS)

    assert batch.images.shape == (2, 100, 100, 3)
    assert [geometry.resized for geometry in batch.geometries] == [(50, 100), (100, 50)]
    np.testing.assert_array_equal((~batch.padding_mask).sum((1, 2)), [5000, 5000])
    assert not batch.images[batch.padding_mask].any()


def test_a_batch_is_padded_to_what_the_graph_takes() -> None:
    preprocess = PREPROCESS.model_copy(update={"min_side": 128})

    batch = make_batch([PORTRAIT], preprocess)

    assert batch.padding_mask.shape == (1, 128, 128)


def test_every_image_gets_its_own_row_and_geometry() -> None:
    found = run_images(whole_image, [LANDSCAPE, PORTRAIT], preprocess=PREPROCESS)

    assert [one.geometry.original for one in found] == [(100, 200), (80, 40)]
    np.testing.assert_allclose([one.output.scores[0] for one in found], [0.7, 0.9])


def test_detections_are_in_pixels_of_each_image_and_filtered() -> None:
    first, second = detect(whole_image, [LANDSCAPE, PORTRAIT], preprocess=PREPROCESS, threshold=0.8)

    assert len(first) == 0
    np.testing.assert_array_equal(second.boxes_xywh_px, [[0, 0, 40, 80]])


def test_labels_and_number_of_detections_can_be_limited() -> None:
    (of_label,) = detect(whole_image, [PORTRAIT], preprocess=PREPROCESS, labels_kept={0})
    (best,) = detect(whole_image, [PORTRAIT], preprocess=PREPROCESS, top_k=1)

    np.testing.assert_array_equal(of_label.labels, [0])
    np.testing.assert_array_equal(best.labels, [1])


def test_of_boxes_that_overlap_the_best_is_kept_where_it_is_asked_for() -> None:
    def one_box_twice(images: Uint8Array, padding_mask: BoolArray) -> RawOutput:
        scores, labels, boxes = whole_image(images, padding_mask)
        return RawOutput(scores[:, [0, 0]], labels[:, [0, 0]], boxes[:, [0, 0]])

    (everything,) = detect(one_box_twice, [PORTRAIT], preprocess=PREPROCESS)
    (best,) = detect(one_box_twice, [PORTRAIT], preprocess=PREPROCESS, nms_iou=0.9)

    assert [len(everything), len(best)] == [2, 1]
