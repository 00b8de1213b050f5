"""When a shape is captured, and whose graph makes room; no GPU is needed."""

from collections.abc import Callable

import pytest
import torch

from bundle.tensorrt_plan import BatchShape
from engines.gpu.torch_lanes import Lanes, Outputs
from engines.gpu.torch_program import Known

ONE, TWO, THREE = (BatchShape(batch, 64, 96) for batch in (1, 2, 3))


class FakeGraphs:
    """Computes a batch's size, and captures; `log` has what was done, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.can_capture = True

    def compute(self, shape: BatchShape, known: Known) -> Outputs:
        self.log.append(f"compute {shape.batch}")
        return (torch.tensor(shape.batch),)

    def capture(self, enqueue: Callable[[], Outputs]) -> "FakeGraph":
        if not self.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        before = len(self.log)
        outputs = enqueue()
        del self.log[before:]  # it is recorded, not run
        return FakeGraph(self, outputs)


class FakeGraph:
    def __init__(self, graphs: FakeGraphs, outputs: Outputs) -> None:
        self._log = graphs.log
        self.outputs = outputs

    def replay(self) -> None:
        self._log.append(f"replay {self.outputs[0]}")

    def close(self) -> None:
        self._log.append(f"close {self.outputs[0]}")


@pytest.fixture
def graphs() -> FakeGraphs:
    return FakeGraphs()


def lanes_of(graphs: FakeGraphs, max_graphs: int) -> Lanes:
    def wait() -> None:
        graphs.log.append("wait")

    return Lanes(graphs.compute, capture=graphs.capture, wait=wait, max_graphs=max_graphs)


def test_a_shape_is_captured_at_its_second_run_and_then_launched(graphs: FakeGraphs) -> None:
    lanes = lanes_of(graphs, 4)

    outputs = [int(lanes.run(shape)[0]) for shape in (TWO, TWO, TWO, ONE)]

    assert outputs == [2, 2, 2, 1]
    assert graphs.log == ["compute 2", "replay 2", "replay 2", "compute 1"]
    assert lanes.num_graphs == 1


def test_the_least_recently_used_shape_makes_room_once_it_does_not_run(graphs: FakeGraphs) -> None:
    lanes = lanes_of(graphs, 2)
    for shape in (ONE, ONE, TWO, TWO, ONE):
        lanes.run(shape)

    lanes.run(THREE)
    lanes.run(ONE)

    assert graphs.log[-4:] == ["wait", "close 2", "compute 3", "replay 1"]


def test_without_graphs_nothing_is_captured(graphs: FakeGraphs) -> None:
    lanes = lanes_of(graphs, 0)

    for shape in (ONE, ONE, TWO, ONE):
        lanes.run(shape)

    assert graphs.log == ["compute 1", "compute 1", "compute 2", "compute 1"]
    assert lanes.num_graphs == 0


def test_a_program_that_cannot_be_captured_runs_without_and_says_so_once(
    graphs: FakeGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    graphs.can_capture = False
    lanes = lanes_of(graphs, 4)

    outputs = [int(lanes.run(shape)[0]) for shape in (ONE, ONE, ONE, TWO, TWO)]

    assert outputs == [1, 1, 1, 2, 2]
    assert caplog.messages == [
        "running without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_closing_destroys_every_graph(graphs: FakeGraphs) -> None:
    lanes = lanes_of(graphs, 4)
    for shape in (ONE, ONE, TWO, TWO, THREE):
        lanes.run(shape)

    lanes.close()

    assert sorted(graphs.log[-2:]) == ["close 1", "close 2"]
    assert lanes.num_graphs == 0
