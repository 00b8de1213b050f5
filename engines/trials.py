"""The batches of known answers that an engine is tested on before it serves."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

from bundle.manifest import Manifest
from bundle.preprocess import photograph
from bundle.tensorrt_plan import BatchShape

Size = tuple[int, int]  # (height, width)


class Trial(NamedTuple):
    """A batch to run: its padded shape, and which known answer is in each row.

    A batch without known answers is black, and only warms the engine up.
    """

    shape: BatchShape
    places: tuple[int, ...]


def small_trials(sizes: Sequence[Size], manifest: Manifest, *, max_batch_size: int) -> list[Trial]:
    """Each known answer alone, then the largest batch, with a known answer in every row.

    Args:
        sizes: of the known answers.
        max_batch_size: the most images that will be served in a batch. If there are more known
            answers than that, they are divided among several.
    """
    least = manifest.preprocess.min_side
    alone = [Trial(_padded_shape([size], least), (place,)) for place, size in enumerate(sizes)]
    together = [
        place
        for place, size in enumerate(sizes)
        if manifest.batches == "any" or size == sizes[-1]  # or only images of equal shape
    ]
    rows = list(islice(cycle(together), max(max_batch_size, len(together))))
    common = _padded_shape([sizes[place] for place in rows], least)
    parts = [rows[at : at + max_batch_size] for at in range(0, len(rows), max_batch_size)]
    batches = [Trial(common._replace(batch=len(part)), tuple(part)) for part in parts]
    return list(dict.fromkeys(alone + batches))


def large_trials(
    sizes: Sequence[Size],
    manifest: Manifest,
    *,
    max_batch_size: int,
    largest_batches: Sequence[BatchShape],
) -> list[Trial]:
    """Known answers padded to the size of photographs, and to the largest batches of an engine.

    Shapes are left out if a batch at least as large has run. The batches are black if the bundle is
    served without padding.

    Args:
        sizes, max_batch_size: as in `small_trials`, which runs before.
        largest_batches: see `Engine`.
    """
    small = small_trials(sizes, manifest, max_batch_size=max_batch_size)
    height, width, _ = photograph(manifest.preprocess).shape
    least = manifest.preprocess.min_side
    photographs = [BatchShape(batch, max(height, least), max(width, least)) for batch in (1, 2)]
    trials: list[Trial] = []
    for largest in (*largest_batches, *photographs):
        shape = largest._replace(batch=min(largest.batch, max_batch_size))
        if not any(shape.fits(trial.shape) for trial in small + trials):
            fitting = [
                place
                for place, size in enumerate(sizes)
                if manifest.batches == "any" and BatchShape(1, *size).fits(shape)
            ]
            trials.append(Trial(shape, tuple(islice(cycle(fitting), shape.batch))))
    return trials


def _padded_shape(sizes: Sequence[Size], min_side: int) -> BatchShape:
    heights, widths = zip(*sizes, strict=True)
    return BatchShape(len(sizes), max(min_side, *heights), max(min_side, *widths))
