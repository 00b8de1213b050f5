"""Resizing in torch, beside OpenCV: every pixel is the same."""

import cv2
import numpy as np
import pytest
import torch

from engines.gpu.torch_resize import resize


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ((480, 640), (800, 1067)),
        ((427, 640), (128, 192)),
        ((400, 600), (200, 300)),  # to half, where OpenCV has code of its own
        ((90, 60), (30, 20)),
        ((97, 131), (97, 131)),
        ((33, 50), (330, 500)),
        ((1, 200), (40, 8)),
        ((7, 1), (33, 1)),
        ((301, 2), (1, 900)),
    ],
    ids=str,
)
def test_an_image_is_resized_as_by_opencv(source: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = np.random.randint(0, 256, (*source, 3), np.uint8)

    resized = resize(torch.from_numpy(image), wanted)

    expected = cv2.resize(image, wanted[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resized.numpy(), expected)


def test_random_sizes_are_too() -> None:
    for height, width, *wanted in np.random.randint(1, 160, (60, 4)).tolist():
        image = np.random.randint(0, 256, (height, width, 3), np.uint8)

        resized = resize(torch.from_numpy(image), (wanted[0], wanted[1]))

        expected = cv2.resize(image, wanted[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resized.numpy(), expected.reshape(resized.shape))


def test_an_image_that_is_turned_or_a_part_need_not_be_copied_first() -> None:
    image = np.random.randint(0, 256, (60, 80, 3), np.uint8)
    turned = torch.from_numpy(image).transpose(0, 1)[8:70, 5:50]

    resized = resize(turned, (31, 90))

    part = np.ascontiguousarray(image.transpose(1, 0, 2)[8:70, 5:50])
    expected = cv2.resize(part, (90, 31), interpolation=cv2.INTER_LINEAR)
    assert resized.is_contiguous()
    np.testing.assert_array_equal(resized.numpy(), expected)
