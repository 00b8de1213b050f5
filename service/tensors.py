"""Tensors of the Open Inference Protocol: requests read, answers written, as JSON or as bytes.

In the binary form, `Inference-Header-Content-Length` says how many bytes of JSON come first; the
raw tensors follow in the order of that JSON. A BYTES element is preceded by its length, 4 bytes
little endian.
"""

import json
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, FailFast, Field, StrictInt, ValidationError

from service.errors import InvalidRequest, MalformedBody
from service.json_body import decode_base64, read_json
from service.validation import invalid_request

HEADER_LENGTH = "Inference-Header-Content-Length"
_MAX_JSON_VALUES = 1_000_000  # parsing this many takes 0.2 CPU-seconds, while others wait
_LENGTH = struct.Struct("<I")

Item = TypeVar("Item")
# At most 8, checked one by one: a model or an error for each of a million takes a gigabyte.
Few = Annotated[list[Item], FailFast(), Field(max_length=8)]
# -1 is any size where a model is described. No product of these is too long to be written.
Size = Annotated[StrictInt, Field(ge=-1, lt=2**31)]
# Some clients write null for what they do not give.
Parameters = Annotated[
    dict[str, Any], BeforeValidator(lambda given: {} if given is None else given)
]


class InputTensor(BaseModel):
    """A tensor as it arrives, with its values in `data` or after the JSON."""

    name: str
    datatype: str
    shape: Few[Size]
    parameters: Parameters = {}
    data: list[Any] | None = None


class WantedOutput(BaseModel):
    """An output that the client asks for."""

    name: str
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """The JSON of an inference request; without `outputs`, all of them are wanted."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: Few[InputTensor]
    outputs: Annotated[
        Few[WantedOutput], BeforeValidator(lambda given: [] if given is None else given)
    ] = []

    def is_binary(self, output: WantedOutput) -> bool:
        """Whether an output should follow the JSON of the answer as raw bytes."""
        return bool(
            output.parameters.get("binary_data", self.parameters.get("binary_data_output", False))
        )


class Tensor(NamedTuple):
    """A tensor of an answer; for BYTES, an object array of strings."""

    datatype: str
    array: npt.NDArray[Any]


class ArrivedTensor(NamedTuple):
    """An input, with its raw bytes if it came in the binary form."""

    head: InputTensor
    raw: memoryview | None

    def files(self) -> list[bytes]:
        """The elements of a BYTES tensor; in JSON they are base64 text.

        Raises:
            InvalidRequest, InvalidImage: they do not fit the shape, or are not base64.
        """
        if self.raw is not None:
            elements = _split_elements(self.raw, self.head.name)
        else:
            texts = np.asarray(self.head.data, dtype=object).ravel().tolist()
            elements = [
                decode_base64(text, f"input {self.head.name!r}, element {index}")
                for index, text in enumerate(texts)
            ]
        self._check_size(len(elements), "elements")
        return elements

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The array of a UINT8 tensor, in its shape.

        Raises:
            InvalidRequest: the values do not fit the shape or the datatype.
        """
        values = self._values()
        self._check_size(values.size, "values")
        return values.reshape(self.head.shape)

    def _values(self) -> npt.NDArray[np.uint8]:
        if self.raw is not None:
            return np.frombuffer(self.raw, np.uint8)
        # As objects: of texts, NumPy would make an array with room for the longest in every place.
        values = np.asarray(self.head.data, dtype=object).ravel()
        is_whole = set(map(type, values)) <= {int}
        if not is_whole or (values.size and not 0 <= values.min() <= values.max() <= 255):
            raise InvalidRequest(
                f"input {self.head.name!r}: expected whole numbers in 0..255, in nested lists of "
                "equal lengths or in one list"
            )
        return values.astype(np.uint8)

    def _check_size(self, size: int, what: str) -> None:
        expected = math.prod(self.head.shape)
        if min(self.head.shape, default=0) < 0 or size != expected:
            raise InvalidRequest(
                f"input {self.head.name!r}: expected {expected} {what} for the shape "
                f"{self.head.shape}, got {size}"
            )


def read_infer_request(
    body: bytes, header_length: str | None
) -> tuple[InferRequest, list[ArrivedTensor]]:
    """An inference request and its tensors; `header_length` is the value of that header.

    Raises:
        MalformedBody: not JSON, or lengths that do not fit the body.
        InvalidRequest: JSON of the wrong structure.
    """
    num_json = len(body)
    if header_length is not None:
        # No length has more digits, and Python refuses to convert thousands of them.
        is_number = header_length.isdecimal() and len(header_length) < 20
        num_json = int(header_length) if is_number else -1
        if not 0 <= num_json <= len(body):
            raise MalformedBody(
                f"expected {HEADER_LENGTH} in 0..{len(body)}, the bytes of the body, got "
                f"{header_length[:100]!r}"
            )
    parsed = read_json(body[:num_json], max_values=_MAX_JSON_VALUES)
    try:
        request = InferRequest.model_validate(parsed)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise invalid_request(faults) from error
    return request, _take_tensors(request.inputs, memoryview(body)[num_json:])


def write_infer_answer(
    answer: dict[str, Any], tensors: Sequence[tuple[str, Tensor, bool]]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if raw tensors follow.

    Args:
        answer: everything but the outputs.
        tensors: for every output its name, its tensor, and whether to send it as raw bytes.
    """
    outputs, raws = [], []
    for name, (datatype, array), is_binary in tensors:
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if is_binary:
            raws.append(_raw(array))
            output["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            output["data"] = _as_list(array)
        outputs.append(output)
    head = json.dumps({**answer, "outputs": outputs}).encode()
    return b"".join([head, *raws]), len(head) if raws else None


def _take_tensors(heads: Sequence[InputTensor], rest: memoryview) -> list[ArrivedTensor]:
    tensors = []
    for head in heads:
        size = head.parameters.get("binary_data_size")
        if (size is None) == (head.data is None):
            raise InvalidRequest(
                f"input {head.name[:100]!r}: expected either 'data' or the parameter "
                "'binary_data_size'"
            )
        if size is not None and (type(size) is not int or not 0 <= size <= len(rest)):
            raise MalformedBody(
                f"input {head.name[:100]!r}: expected 'binary_data_size' of at most "
                f"{len(rest)}, the number of bytes left, got {str(size)[:100]}"
            )
        tensors.append(ArrivedTensor(head, None if size is None else rest[:size]))
        rest = rest[size or 0 :]
    if rest:
        raise MalformedBody(f"bytes after the last tensor, which belong to none: {len(rest)}")
    return tensors


def _split_elements(raw: memoryview, name: str) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + _LENGTH.size
        end = start + (_LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else 0)
        if max(start, end) > len(raw):
            raise InvalidRequest(
                f"input {name!r}: element {len(elements)} is longer than what was sent; each "
                "element follows its length in 4 bytes, little endian"
            )
        elements.append(bytes(raw[start:end]))
        at = end
    return elements


def _as_list(array: npt.NDArray[Any]) -> list[Any]:
    """The values in row-major order; floating-point values are rounded to six decimals."""
    is_float = array.dtype.kind == "f"
    return (array.astype(np.float64).round(6) if is_float else array).ravel().tolist()


def _raw(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    texts = [text.encode() for text in array.ravel()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
