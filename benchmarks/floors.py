"""What the machine allows: its peak arithmetic speed, and the operations that a graph needs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.layout import IMAGES, PADDING_MASK

# A 3 x 3 convolution of 256 channels over one level of an 800 x 1066 image, and a product of square
# matrices. On the AMD EPYC of the results, nothing else that was tried came closer to the peak.
CHANNELS, HEIGHT, WIDTH = 256, 100, 134
SIDE = 1024
CONVOLUTION_FLOP = 2 * 9 * CHANNELS * CHANNELS * HEIGHT * WIDTH
PRODUCT_FLOP = 2 * SIDE**3
PEAK_FLOP = {"fp32": CONVOLUTION_FLOP, "bf16": CONVOLUTION_FLOP, "int8": PRODUCT_FLOP}


def open_peak(precision: str) -> Callable[[], object]:
    """A function that does `PEAK_FLOP[precision]` operations and little else."""
    if precision == "int8":
        left, right = (torch.randint(-9, 9, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(left, right)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    image = torch.randn(1, CHANNELS, HEIGHT, WIDTH, dtype=dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, dtype=dtype)

    def convolve() -> Tensor:
        with torch.inference_mode():
            return F.conv2d(image, kernel, padding=1)

    return convolve


def count_flop(graph: Path, height: int, *, width: int) -> float:
    """Operations in the convolutions and matrix products of a graph in standard operators.

    They are for one image of this size; a multiplication with its addition counts as two.
    """
    import openvino

    model = openvino.Core().read_model(graph)
    model.reshape({IMAGES: [1, height, width, 3], PADDING_MASK: [1, height, width]})
    return float(sum(_node_flop(node) for node in model.get_ordered_ops()))


def _node_flop(node: "openvino.Node") -> int:  # type: ignore[name-defined]  # noqa: F821
    kind = node.get_type_name()
    if kind not in ("Convolution", "MatMul"):
        return 0
    num_outputs = 1
    for side in node.output(0).shape:
        num_outputs *= side
    left, right = (list(node.input_value(i).shape) for i in range(2))
    if kind == "Convolution":  # right is (outputs, inputs, height, width)
        return 2 * num_outputs * right[1] * right[2] * right[3]
    return 2 * num_outputs * left[-2 if node.get_attributes()["transpose_a"] else -1]
