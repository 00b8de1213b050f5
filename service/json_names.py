"""Finds a name that an object of a JSON body has twice, of which the parser keeps the last."""

import re

from pydantic_core import from_json

_MOST_TOKENS = 100_000  # texts and braces; no request has a thousandth of them
_TOKEN = re.compile(rb'[{}]|"([^"]*+)"(\s*+:)?')  # of JSON whose texts have no quotes inside
_OPENING, _CLOSING = b"{}"
_BACKSLASH, _QUOTE = (rb"\\", b"\0"), (b'\\"', b"\1")  # as JSON has them, and what it never has


def name_given_twice(body: bytes) -> str | None:
    """The first name that an object of a valid JSON body has twice, if any.

    Raises:
        ValueError: there is too much to look through.
    """
    plain = body.replace(*_BACKSLASH).replace(*_QUOTE) if b"\\" in body else body
    open_ones: list[set[str]] = []  # the names of each object that is open here
    for number, token in enumerate(_TOKEN.finditer(plain)):
        if number == _MOST_TOKENS:
            raise ValueError(f"expected at most {_MOST_TOKENS} texts and objects, got more")
        if plain[token.start()] == _OPENING:
            open_ones.append(set())
        elif plain[token.start()] == _CLOSING:
            open_ones.pop()
        elif token[2]:
            name = _read(token[1])
            if name in open_ones[-1]:
                return name
            open_ones[-1].add(name)
    return None


def _read(name: bytes) -> str:
    for written, replaced in (_BACKSLASH, _QUOTE):
        name = name.replace(replaced, written)
    return str(from_json(b'"%s"' % name))
