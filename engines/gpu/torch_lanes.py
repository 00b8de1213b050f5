"""The shapes that a torch program has run in, and their CUDA graphs, least recently used first.

A shape's first run computes what depends on its size alone, and loads kernels. The second run is
captured; from then on the graph is launched.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from bundle.tensorrt_plan import BatchShape
from engines.gpu.torch_program import Known

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]


class Captured(Protocol):
    """A CUDA graph, and where it leaves its outputs."""

    outputs: Outputs

    def replay(self) -> None:
        """Launch it."""

    def close(self) -> None:
        """Destroy it; it must not be running."""


class _Lane:
    def __init__(self) -> None:
        self.known = Known.nothing()
        self.has_run = False
        self.graph: Captured | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()


class Lanes:
    """The shapes in use.

    Args:
        compute: puts a run of one shape into the current stream, and returns its outputs.
        capture: captures what a function puts there, without running it. Raises RuntimeError if
            that is not possible.
        wait: waits until nothing runs, so that a graph may be destroyed.
        max_graphs: most graphs kept; 0 for none.
    """

    def __init__(
        self,
        compute: Callable[[BatchShape, Known], Outputs],
        *,
        capture: Callable[[Callable[[], Outputs]], Captured],
        wait: Callable[[], None],
        max_graphs: int,
    ) -> None:
        self._compute = compute
        self._capture = capture
        self._wait = wait
        self._uses_graphs = max_graphs > 0
        self._max_lanes = max(1, max_graphs)
        self._lanes: OrderedDict[BatchShape, _Lane] = OrderedDict()
        self.num_captures = 0  # of graphs, since the start

    @property
    def num_graphs(self) -> int:
        """The number of graphs kept now."""
        return sum(lane.graph is not None for lane in self._lanes.values())

    def run(self, shape: BatchShape) -> Outputs:
        """The outputs of one run, which must be read by what is put into the stream next.

        Raises:
            RuntimeError: torch or CUDA failed.
        """
        lane = self._lane(shape)
        if not lane.has_run:
            outputs = self._compute(shape, lane.known)
            lane.has_run = True
            return outputs
        if lane.graph is None and self._uses_graphs:
            self._try_capture(lane, shape)
        if lane.graph is None:
            return self._compute(shape, lane.known)
        lane.graph.replay()
        return lane.graph.outputs

    def close(self) -> None:
        """Destroy all graphs; nothing may be running."""
        while self._lanes:
            _, lane = self._lanes.popitem()
            lane.close()

    def _lane(self, shape: BatchShape) -> _Lane:
        if shape not in self._lanes and len(self._lanes) >= self._max_lanes:
            _, oldest = self._lanes.popitem(last=False)
            if oldest.graph is not None:
                self._wait()
            oldest.close()
        lane = self._lanes.setdefault(shape, _Lane())
        self._lanes.move_to_end(shape)
        return lane

    def _try_capture(self, lane: _Lane, shape: BatchShape) -> None:
        """Capture the lane's graph; if this program cannot be captured, never try again."""
        try:
            lane.graph = self._capture(lambda: self._compute(shape, lane.known))
            self.num_captures += 1
        except RuntimeError as error:
            logger.warning("running without CUDA graphs: %s", error)
            self._uses_graphs = False
