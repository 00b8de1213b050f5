"""The memory of one batch on its way through a torch program.

An engine has two of these, so that one batch is brought to the device while another one runs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bundle.layout import INPUTS
from bundle.postprocess import RawOutput
from engines.gpu.torch_device import Device, start_of

Size = tuple[int, torch.dtype]  # a number of elements, and their type


class Buffers:
    """Pinned memory of the host for inputs and outputs, and memory of the device for inputs.

    Args:
        sizes: the largest input and output of each name.
    """

    def __init__(self, device: Device, sizes: Mapping[str, Size]) -> None:
        self._device = device
        self._pinned = {name: device.pinned(*size) for name, size in sizes.items()}
        self._staged = {
            name: torch.empty_like(self._pinned[name], device=device.device) for name in INPUTS
        }
        self._uploaded, self._done = device.event(), device.event()
        self._answers: list[Tensor] = []

    def upload(self, inputs: Sequence[npt.NDArray[np.generic]]) -> None:
        """Bring a batch to the device, which fetches one image while the next is pinned.

        Nothing may use these buffers any more.
        """
        with self._device.copying():
            for name, rows in zip(INPUTS, inputs, strict=True):
                pinned, staged = (
                    start_of(memory[name], rows.shape) for memory in (self._pinned, self._staged)
                )
                for source, host, target in zip(rows, pinned, staged, strict=True):
                    host.numpy()[...] = source
                    self._device.copy(target, host)
            self._uploaded.record()

    def deliver(self, inputs: Mapping[str, Tensor]) -> None:
        """Copy the batch, in the current stream, to where the program reads it."""
        self._uploaded.wait()
        for name, target in inputs.items():
            self._device.copy(target, start_of(self._staged[name], target.shape))

    def download(self, outputs: Mapping[str, Tensor]) -> None:
        """Bring outputs to the host, in the current stream."""
        self._answers = [start_of(self._pinned[name], out.shape) for name, out in outputs.items()]
        for answer, output in zip(self._answers, outputs.values(), strict=True):
            self._device.copy(answer, output)
        self._done.record()

    def wait(self) -> RawOutput:
        """The outputs that were put on their way, once they are here."""
        self._done.synchronize()
        return RawOutput(*(answer.numpy().copy() for answer in self._answers))
