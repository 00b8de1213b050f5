"""Renames the domain of an ONNX graph's own operators, without the package onnx.

ONNX Runtime knows TensorRT's plugins by the domain trt.plugins only. An ONNX file is one message of
protocol buffers, https://protobuf.dev/programming-guides/encoding/: fields of a number, a type and
a content, some of which are messages themselves.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Where onnx.proto keeps names of domains: fields that lead to them, a number a level.
_OPSET_IMPORT, _GRAPH, _NODE = 8, 7, 1
_DOMAINS: Mapping[int, Any] = {_OPSET_IMPORT: {1: None}, _GRAPH: {_NODE: {7: None}}}

_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


class _Field(NamedTuple):
    number: int
    tag: bytes
    content: memoryview | None  # of what has a length, else None
    whole: memoryview


def rename_domain(model: bytes, old: str, new: str) -> bytes:
    """The serialized model with every operator of domain `old` in domain `new`.

    Raises:
        ValueError: the bytes are no message.
    """
    try:
        return _renamed(memoryview(model), _DOMAINS, old.encode(), new.encode())
    except (IndexError, KeyError) as error:
        raise ValueError("expected a serialized ONNX model, got other bytes") from error


def _renamed(message: memoryview, paths: Mapping[int, Any], old: bytes, new: bytes) -> bytes:
    parts: list[bytes | memoryview] = []
    for field in _fields(message):
        if field.number not in paths or field.content is None:
            parts.append(field.whole)
            continue
        inner = paths[field.number]
        if inner is not None:
            content = _renamed(field.content, inner, old, new)
        else:
            content = new if field.content == old else bytes(field.content)
        parts += [field.tag, _varint(len(content)), content]
    return b"".join(parts)


def _fields(message: memoryview) -> Iterator[_Field]:
    start = 0
    while start < len(message):
        tag, end = _read_varint(message, start)
        kind, tag_end, content = tag & 7, end, None
        if kind == _LENGTH_DELIMITED:
            length, begin = _read_varint(message, end)
            end = begin + length
            content = message[begin:end]
        elif kind == 0:
            _, end = _read_varint(message, end)
        else:
            end += _FIXED_BYTES[kind]
        if end > len(message):
            raise IndexError("a field ends behind its message")
        yield _Field(tag >> 3, bytes(message[start:tag_end]), content, message[start:end])
        start = end


def _read_varint(message: memoryview, start: int) -> tuple[int, int]:
    """A number, and where it ends: seven bits a byte, the lowest first."""
    value = shift = 0
    while True:
        byte = message[start]
        value |= (byte & 0x7F) << shift
        shift, start = shift + 7, start + 1
        if byte < 0x80:
            return value, start


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
