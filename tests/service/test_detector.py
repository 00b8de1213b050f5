from hypothesis import given
from hypothesis import strategies as st

from bundle.preprocess import Preprocess, resized_size
from service.detector import bucket

FULL_SIZE = Preprocess()


def meet(*originals: tuple[int, int]) -> tuple[bool, int, int]:
    """Whether two images lie in one bucket, and the sides of their batch, short and long."""
    short, long = FULL_SIZE.short_side, FULL_SIZE.long_side
    sizes = [resized_size(*original, short_side=short, long_side=long) for original in originals]
    padded = sorted(max(lengths) for lengths in zip(*sizes, strict=True))
    return len({bucket(*size, short_side=short) for size in sizes}) == 1, *padded


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.floats(0.8, 1.25))
def test_a_batch_is_no_larger_than_an_image_may_be(size: tuple[int, int], ratio: float) -> None:
    is_batch, short, long = meet(size, (max(1, round(size[0] * ratio)), size[1]))

    assert not is_batch or (short <= FULL_SIZE.short_side and long <= FULL_SIZE.long_side)


def test_a_portrait_and_a_landscape_that_are_almost_square_do_not_meet() -> None:
    assert meet((801, 800), (800, 801)) == (False, 801, 801)


def test_photographs_of_usual_shapes_lie_in_few_buckets() -> None:
    shapes = [(800, 1067), (800, 1066), (800, 1200), (750, 1333), (1067, 800), (800, 800)]

    buckets = [bucket(*shape, short_side=800) for shape in shapes]

    assert buckets == [(3, 4, False)] * 2 + [(3, 5, False)] * 2 + [(4, 3, True), (3, 3, False)]
