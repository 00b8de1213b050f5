"""What a batch is expected to take."""

import pytest

from service.batching.batch_times import Durations, Line


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


def test_a_line_goes_on_beyond_the_sizes_that_were_seen() -> None:
    line = Line()
    for size in (1, 3, 2, 3):
        line.add(size, 5 + 2 * size)

    assert line.at(10) == pytest.approx(25)
    assert line.deviation < 1.5  # it was level before the second size


def test_a_line_through_one_size_is_level() -> None:
    line = Line()
    for value in (1.0, 3.0):
        line.add(4, value)

    assert line.at(400) == line.at(4) == pytest.approx(2, abs=0.1)


def test_a_line_has_no_slope_because_of_another_size_long_ago() -> None:
    line = Line()
    line.add(5, 100.0)
    for _ in range(60):
        line.add(4, 1.0)

    assert line.at(400) == pytest.approx(1, abs=0.2)


def test_the_deviation_is_what_is_usual_on_either_side_of_the_line() -> None:
    line = Line()
    line.add(4, 3.0)
    first = line.deviation
    for value in (1.0, 3.0) * 40:
        line.add(4, value)

    assert first == 0
    assert line.deviation == pytest.approx(1, abs=0.1)


def test_a_line_forgets_what_was_long_ago() -> None:
    line = Line()
    line.add(15, 1000.0)
    for size in (4, 5) * 60:
        line.add(size, size)

    assert line.at(5) == pytest.approx(5, abs=0.2)


def test_more_never_takes_less_time_and_none_takes_less_than_no_time() -> None:
    line = Line()
    for size in range(1, 6):
        line.add(size, 10 - size)

    assert line.at(100) == line.at(1) > 0


def test_a_size_under_those_seen_takes_no_less_than_no_time() -> None:
    line = Line()
    for size in (5, 6, 5, 6):
        line.add(size, 10.0 * (size - 5))

    assert line.at(1) == 0
