"""Execution contexts and CUDA graphs of a TensorRT engine, one of each per shape in use.

Every captured graph needs its own context, since changing the shape of a context invalidates its
graph. After a change of shape, a context has to run once before it can be captured. All contexts
share one block of memory for activations, as they run one after the other, in one stream.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bundle.tensorrt_plan import BatchShape
from engines.gpu.cuda import CudaError, DeviceMemory, Graph, Stream
from engines.gpu.tensorrt_runtime import TensorRTError, require

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lane:
    """A context that is set to one shape."""

    context: Any
    is_ready: bool = False  # set to its shape, and has run once
    graph: Graph | None = None

    def reset(self) -> None:
        """Free it for another shape."""
        self.is_ready = False
        graph, self.graph = self.graph, None
        if graph is not None:
            graph.close()


class Lanes:
    """The contexts of one engine, least recently used first.

    There is at least one more than runs that others may be in, so the least recently used is idle.

    Args:
        trt, engine: the module and the engine.
        addresses: of every input and output on the GPU; the same for all shapes.
        activations: memory large enough for any profile.
        input_shapes: gives the shape of every input for a shape of the batch.
        runs_at_once: how many runs may be in the stream at a time.
        max_graphs: most graphs kept; 0 for none.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        *,
        stream: Stream,
        addresses: dict[str, int],
        activations: DeviceMemory,
        input_shapes: Callable[[BatchShape], dict[str, tuple[int, ...]]],
        runs_at_once: int,
        max_graphs: int,
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._stream = stream
        self._addresses = addresses
        self._activations = activations
        self._input_shapes = input_shapes
        self._max_graphs = max_graphs
        # All are created at start, so that serving takes no more memory than starting.
        self._spare = [_Lane(self._new_context()) for _ in range(max(runs_at_once, max_graphs))]
        self._lanes: OrderedDict[tuple[int, BatchShape], _Lane] = OrderedDict()
        self.num_captures = 0  # of graphs, since the start

    @property
    def num_graphs(self) -> int:
        """The number of graphs kept now."""
        return sum(lane.graph is not None for lane in self._lanes.values())

    def enqueue(self, profile: int, shape: BatchShape) -> None:
        """Put one inference into the stream, behind at most `runs_at_once - 1` others.

        Raises:
            TensorRTError, CudaError: it could not be enqueued. Parts of it may still run.
        """
        key = (profile, shape)
        lane = self._lanes[key] = self._lanes.get(key) or self._free_lane()
        self._lanes.move_to_end(key)
        if not lane.is_ready:
            self._bind(lane.context, profile, shape)
            self._enqueue_plain(lane.context)
            lane.is_ready = True
        elif lane.graph is not None or self._capture(lane):
            assert lane.graph is not None
            self._stream.launch(lane.graph)
        else:
            self._enqueue_plain(lane.context)

    def close(self) -> None:
        """Destroy graphs, contexts and the engine; nothing may be running."""
        while self._lanes:
            _, lane = self._lanes.popitem()
            lane.reset()
        self._spare.clear()
        del self._engine

    def _free_lane(self) -> _Lane:
        """A lane without a shape, or else the least recently used one."""
        if self._spare:
            return self._spare.pop()
        _, lane = self._lanes.popitem(last=False)
        lane.reset()
        return lane

    def _bind(self, context: Any, profile: int, shape: BatchShape) -> None:
        if context.active_optimization_profile != profile:
            switched = context.set_optimization_profile_async(profile, self._stream.handle)
            require(self._trt, switched, call=f"set_optimization_profile_async({profile})")
        context.set_device_memory(self._activations.address, self._activations.num_bytes)
        for name, dims in self._input_shapes(shape).items():
            require(
                self._trt, context.set_input_shape(name, dims), call=f"set_input_shape{name, dims}"
            )

    def _new_context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        require(self._trt, context, call="create_execution_context")
        for name, address in self._addresses.items():
            require(self._trt, context.set_tensor_address(name, address), call="set_tensor_address")
        return context

    def _enqueue_plain(self, context: Any) -> None:
        is_enqueued = context.execute_async_v3(self._stream.handle)
        require(self._trt, is_enqueued, call="execute_async_v3")

    def _capture(self, lane: _Lane) -> bool:
        """Capture the lane's graph, if there may be one more.

        If this engine cannot be captured, never try again.
        """
        if self.num_graphs >= self._max_graphs:
            return False
        try:
            lane.graph = self._stream.capture(lambda: self._enqueue_plain(lane.context))
        except (CudaError, TensorRTError) as error:
            logger.warning("running without CUDA graphs: %s", error)
            self._max_graphs = 0
            return False
        self.num_captures += 1
        return True
