"""The memory of one batch on its way to the GPU and back.

An engine has two of these, so that one batch is brought to the GPU while another one runs.
"""

from contextlib import ExitStack, closing

import numpy as np
import numpy.typing as npt

from bundle.layout import IMAGES, OUTPUTS, PADDING_MASK
from bundle.manifest import Manifest
from bundle.postprocess import RawOutput
from bundle.tensorrt_plan import BatchShape, ShapeProfile
from engines.gpu.cuda import Cuda, DeviceMemory, Event, Stream
from engines.gpu.tensorrt_tensors import PinnedTensor, largest_bytes

PADDING = {IMAGES: 0, PADDING_MASK: 1}


class Buffers:
    """Pinned memory for inputs and outputs, and memory on the GPU where inputs wait.

    Args:
        copies: the stream in which inputs come to the GPU.
        profiles: whose largest batches must fit.
    """

    def __init__(
        self, cuda: Cuda, manifest: Manifest, *, copies: Stream, profiles: tuple[ShapeProfile, ...]
    ) -> None:
        self._copies = copies
        with ExitStack() as resources:
            self._pinned = {
                spec.name: resources.enter_context(
                    closing(PinnedTensor(cuda, spec, profiles=profiles))
                )
                for spec in (*manifest.inputs, *manifest.outputs)
            }
            self._waiting = {
                spec.name: resources.enter_context(
                    closing(DeviceMemory(cuda, largest_bytes(spec, profiles)))
                )
                for spec in manifest.inputs
            }
            self._arrived, self._done = (
                resources.enter_context(closing(Event(cuda))) for _ in range(2)
            )
            self._resources = resources.pop_all()
        self.num_bytes = sum(memory.num_bytes for memory in self._waiting.values())

    def upload(
        self,
        images: npt.NDArray[np.uint8],
        padding_mask: npt.NDArray[np.bool_],
        *,
        shape: BatchShape,
    ) -> None:
        """Bring a batch to the GPU, which fetches one image while the next one is pinned.

        Nothing may use these buffers any more.

        Args:
            shape: what the batch is padded to.
        """
        for name, rows in ((IMAGES, images), (PADDING_MASK, padding_mask)):
            pinned = self._pinned[name].array(shape)
            if rows.shape != pinned.shape:
                pinned[...] = PADDING[name]
            for row, source in enumerate(rows):
                pinned[row, : source.shape[0], : source.shape[1]] = source
                offset = row * pinned[row].nbytes
                self._copies.upload(self._waiting[name].address + offset, pinned[row])
        self._copies.record(self._arrived)

    def deliver(
        self, stream: Stream, inputs: dict[str, DeviceMemory], *, shape: BatchShape
    ) -> None:
        """Copy the batch, in the stream that computes, to where the network reads it."""
        stream.wait_for(self._arrived)
        for name, memory in inputs.items():
            num_bytes = self._pinned[name].array(shape).nbytes
            stream.copy(memory.address, self._waiting[name].address, num_bytes=num_bytes)

    def download(
        self, stream: Stream, outputs: dict[str, DeviceMemory], *, shape: BatchShape
    ) -> None:
        """Copy the outputs to the host, in the stream that computes."""
        self._answers = [self._pinned[name].array(shape) for name in OUTPUTS]
        for name, answer in zip(OUTPUTS, self._answers, strict=True):
            stream.download(answer, outputs[name].address)
        stream.record(self._done)

    def wait(self) -> RawOutput:
        """The outputs, once they are here.

        Raises:
            CudaError: something failed on the GPU.
        """
        self._done.synchronize()
        return RawOutput(*(answer.copy() for answer in self._answers))

    def close(self) -> None:
        """Free the memory; nothing may be running."""
        self._resources.close()
