"""Evaluation of images with padding around them."""

import numpy as np
import pytest

from bundle.postprocess import RawOutput
from bundle.preprocess import Preprocess
from model.data.digits import DigitsDataset
from model.evaluate import main
from model.evaluation.evaluation import evaluate
from model.evaluation.padding import padding_report, with_padding

PREPROCESS = Preprocess(short_side=128, long_side=224)


def test_a_detector_is_given_the_image_and_that_much_more_padding() -> None:
    given: list[np.ndarray] = []

    def predict(images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        given.extend((images, padding_mask))
        scores, boxes = np.ones((1, 1), np.float32), np.ones((1, 1, 4), np.float32)
        return RawOutput(scores, np.zeros((1, 1), np.int64), boxes)

    image = np.full((1, 5, 7, 3), 9, np.uint8)
    with_padding(predict, 2, columns=3)(image, np.zeros((1, 5, 7), bool))

    images, padding_mask = given
    assert images.shape == (1, 7, 10, 3)
    np.testing.assert_array_equal(images[:, :5, :7], image)
    assert images.sum() == image.sum()
    assert padding_mask.sum() == 7 * 10 - 5 * 7
    assert not padding_mask[:, :5, :7].any()


def test_the_report_of_a_run_tells_what_padding_does_to_ap() -> None:
    dataset = DigitsDataset("val", num_images=4)
    targets = [dataset[index][1] for index in range(4)]
    given = iter(targets * 2)

    def blind_on_padding(images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        target = next(given)
        count = 0 if padding_mask.any() else len(target["labels"])
        scores, boxes = np.zeros((1, 9), np.float32), np.zeros((1, 9, 4), np.float32)
        labels = np.zeros((1, 9), np.int64)
        scores[0, :count], labels[0, :count] = 0.9, target["labels"][:count]
        centres, sizes = target["boxes"][:count, :2], target["boxes"][:count, 2:]
        boxes[0, :count] = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
        return RawOutput(scores, labels, boxes)

    alone = evaluate(blind_on_padding, dataset, preprocess=PREPROCESS, classes=dataset.classes)
    report = padding_report(
        blind_on_padding, dataset, preprocess=PREPROCESS, classes=dataset.classes, alone=alone
    )

    expected = "AP 1.0000 of images alone, 0.0000 with 32 rows and 64 columns of padding"
    assert report == expected


@pytest.mark.parametrize("text", ["32", "32x", "-1x4", "axb"])
def test_padding_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "any", f"--padding={text}"])

    assert "expected HEIGHTxWIDTH in pixels, such as 480x640" in capsys.readouterr().err
