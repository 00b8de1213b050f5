"""What a batch is expected to take."""

import pytest

from service.batching.batch_times import Durations


def test_nothing_is_expected_before_the_first_batch() -> None:
    assert Durations().expect(4) == 0


def test_a_size_seen_is_expected_to_take_as_long_again() -> None:
    durations = Durations()

    durations.record(1, 0.04)
    durations.record(8, 0.10)

    assert durations.expect(1) == 0.04
    assert durations.expect(8) == 0.10


def test_a_size_not_seen_takes_after_the_nearest_smaller_one() -> None:
    durations = Durations()

    durations.record(2, 0.05)
    durations.record(4, 0.07)

    assert durations.expect(3) == 0.05
    assert durations.expect(16) == 0.07
    assert durations.expect(1) == 0.05  # the smallest there is


def test_an_outlier_moves_the_expectation_only_a_little() -> None:
    durations = Durations()

    durations.record(1, 0.1)
    durations.record(1, 1.1)

    assert durations.expect(1) == pytest.approx(0.3)
