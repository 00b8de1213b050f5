"""What the tables of bench-gpu say of a measurement."""

from typing import Any

from benchmarks.gpu_operator import (
    AUTHORS,
    BARS,
    DEFORMOPS,
    OPERATORS,
    OURS,
    YARDSTICK,
    OperatorTask,
)
from benchmarks.gpu_rounds import Failed, Measured
from benchmarks.gpu_tables import operator_table

TASK = OperatorTask("encoder", "fp32", "cuda")


def test_a_table_says_how_far_ours_is_ahead_of_those_it_has_to_beat() -> None:
    about: dict[str, Any] = {name: {"error": 1e-6} for name in (YARDSTICK, OURS, AUTHORS)}
    about |= {DEFORMOPS: Failed("no module")}
    turns = {
        YARDSTICK: [{"forward": 5.0, "both": 20.0}],
        OURS: [{"forward": 0.05, "both": 0.2}],
        AUTHORS: [{"forward": 0.3, "both": 1.1}],
        DEFORMOPS: [],
    }

    table = operator_table(Measured(TASK, about, turns, is_whole=True))

    said = [line for line in table.splitlines() if line.startswith("Forward and backward")]
    assert said == [
        f"Forward and backward: 5.50 times as fast as {AUTHORS}; at least 2 is wanted on an H100."
    ]


def test_whatever_is_to_be_beaten_is_measured() -> None:
    assert BARS.keys() | {OURS} <= OPERATORS.keys()
