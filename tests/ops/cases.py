"""The one table of cases that every backend of multi-scale deformable attention is run against."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OpCase:
    """Sizes of one call.

    `spread` is how far, in normalised units, references leave [0, 1]. With `has_infinite_border`
    the border of every level is infinite, and every sample is outside the map or away from it.
    """

    name: str
    batch: int = 2
    heads: int = 2
    head_dim: int = 4
    points: int = 3
    queries: int = 5
    shapes: tuple[tuple[int, int], ...] = ((4, 6), (2, 3))
    reference_width: int = 2
    spread: float = 0.0
    has_infinite_border: bool = False

    def inputs(
        self, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]:
        """Random arguments of `ms_deform_attn`, the same for the same case."""
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        levels = len(self.shapes)
        tokens = sum(h * w for h, w in self.shapes)
        heads = (self.batch, self.queries, self.heads, levels, self.points)
        reference = rand(self.batch, self.queries, levels, self.reference_width)
        reference[..., :2] = reference[..., :2] * (1 + 2 * self.spread) - self.spread
        value = rand(self.batch, tokens, self.heads, self.head_dim) - 0.5
        if self.has_infinite_border:
            _set_border(value, self.shapes)
            # Every second query looks at the middle of the first level; all others are outside.
            reference[..., :2] = 5.0
            reference[:, ::2, 0, :2] = 0.5
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return (
            value.to(dtype),
            list(self.shapes),
            reference.to(wide),
            (4 * rand(*heads, 2) - 2).to(dtype),
            (4 * rand(*heads) - 2).to(dtype),
        )


def _set_border(value: Tensor, shapes: tuple[tuple[int, int], ...]) -> None:
    """Make the outermost pixels of every level infinite, in place."""
    levels = value.split([height * width for height, width in shapes], dim=1)
    for level, shape in zip(levels, shapes, strict=True):
        pixels = level.unflatten(1, shape)  # (B, H, W, M, D)
        for border in (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]):
            border.fill_(torch.inf)


PYRAMID = ((9, 13), (5, 7), (3, 4), (2, 2))

CASES = (
    OpCase("two levels, points"),
    OpCase("two levels, boxes", reference_width=4),
    OpCase("one level", shapes=((5, 3),)),
    OpCase("one pixel", shapes=((1, 1), (1, 1))),
    OpCase("published sizes", heads=8, head_dim=32, points=4, shapes=PYRAMID),
    OpCase("blocks of queries", heads=8, head_dim=32, points=4, queries=37, shapes=PYRAMID),
    OpCase("one wide head", heads=1, head_dim=256, points=4, queries=37, shapes=PYRAMID),
    OpCase("one channel", head_dim=1, points=4, queries=20, shapes=PYRAMID),
    OpCase("five points", head_dim=40, points=5, queries=20, shapes=PYRAMID),
    OpCase("nine levels", head_dim=64, reference_width=4, shapes=(*PYRAMID, *PYRAMID, (1, 1))),
    OpCase("many samples of one head", heads=1, head_dim=16, points=70, shapes=((3, 5),)),
    OpCase("odd head width", head_dim=7, points=1),
    OpCase("outside the map", spread=1.5),
    OpCase("boxes outside the map", reference_width=4, spread=1.5),
    OpCase("far outside the map", queries=20, spread=1e6),
    OpCase("no queries", queries=0),
    OpCase("one query", queries=1, shapes=(*PYRAMID, (1, 1)), reference_width=4),
    OpCase("one image", batch=1),
    # What is outside a map has no weight, even if the pixel at the border is infinite.
    OpCase("infinite, points", shapes=PYRAMID, has_infinite_border=True),
    OpCase("infinite, boxes", shapes=PYRAMID, reference_width=4, has_infinite_border=True),
    OpCase(
        "infinite, published sizes",
        heads=8,
        head_dim=32,
        points=4,
        queries=37,
        shapes=PYRAMID,
        has_infinite_border=True,
    ),
    OpCase("infinite, odd head width", head_dim=7, shapes=PYRAMID, has_infinite_border=True),
)
