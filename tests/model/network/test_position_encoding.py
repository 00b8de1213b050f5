"""The encodings of positions against their definition, pixel by pixel."""

import math

import torch

from model.network.position_encoding import encode_boxes, encode_pixels
from model.network.pyramid import build_pyramid


def _features(position: float, num_features: int) -> list[float]:
    """Sine and cosine of a position in 0..1 at every frequency, in turn."""
    angles = [
        position * 2 * math.pi / 10000 ** (2 * j / num_features) for j in range(num_features // 2)
    ]
    return [function(angle) for angle in angles for function in (math.sin, math.cos)]


def test_a_pixel_is_encoded_by_its_row_then_its_column_within_the_image() -> None:
    padding_mask = torch.ones(2, 5, 7, dtype=torch.bool)
    padding_mask[0, :5, :7] = padding_mask[1, :3, :4] = False
    pyramid = build_pyramid([padding_mask])

    encoding = encode_pixels(pyramid.rows[0], pyramid.columns[0], hidden_dim=16)

    assert encoding.shape == (2, 5, 7, 16)
    for image, (height, width) in enumerate([(5, 7), (3, 4)]):
        expected = [
            [
                _features((y + 0.5) / height, 8) + _features((x + 0.5) / width, 8)
                for x in range(width)
            ]
            for y in range(height)
        ]
        torch.testing.assert_close(encoding[image, :height, :width], torch.tensor(expected))


def test_a_box_is_encoded_coordinate_by_coordinate() -> None:
    box = [0.1, 0.6, 0.25, 1.0]

    encoding = encode_boxes(torch.tensor(box), 6)

    expected = [feature for coordinate in box for feature in _features(coordinate, 6)]
    torch.testing.assert_close(encoding, torch.tensor(expected))
