"""Runs a batch through OpenVINO in several parts at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov

from bundle.layout import INPUTS
from engines.base import EngineFailure, reason

# How C++ exceptions arrive in Python: OpenVINO's own as RuntimeError, the others are from the
# standard library.
RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = (
    *(RuntimeError, MemoryError, ValueError, IndexError, OverflowError),
)


def make_requests(model: ov.CompiledModel) -> list[ov.InferRequest]:
    """A request for each stream of the model."""
    return [model.create_infer_request() for _ in range(model.get_property("NUM_STREAMS"))]


def run_in_parts(
    requests: Sequence[ov.InferRequest],
    *,
    images: npt.NDArray[np.uint8],
    padding_mask: npt.NDArray[np.bool_],
) -> Sequence[ov.InferRequest]:
    """Split a batch evenly over the requests; return those that have outputs, in order.

    Raises:
        EngineFailure: the runtime failed on a part; no part runs any more.
    """
    requests = requests[: len(images)]
    parts = (np.array_split(whole, len(requests)) for whole in (images, padding_mask))
    inputs = [dict(zip(INPUTS, part, strict=True)) for part in zip(*parts, strict=True)]
    failures = [
        _attempt(request.start_async, part, share_inputs=True)
        for request, part in zip(requests, inputs, strict=True)
    ]
    failures += [_attempt(request.wait) for request in requests]
    for error in filter(None, failures):
        raise EngineFailure(f"OpenVINO failed on {images.shape}: {reason(error)}") from error
    return requests


def _attempt(call: Callable[..., None], *args: Any, **options: Any) -> Exception | None:
    """The exception that the runtime raised, if any, once all parts of the batch have ended."""
    try:
        call(*args, **options)
    except RUNTIME_ERRORS as error:
        return error
    return None
