"""Reads XML files of annotation tools. Entities and DTDs that reach outside are refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from bundle.regular_file import require_file


def read_xml(file: Path) -> Element:
    """The root element.

    Raises:
        ValueError: it cannot be read, is not XML, or defines entities; names the file.
    """
    with _opened(file) as stream:
        root: Element = ElementTree.parse(stream).getroot()
        return root


def root_tag(file: Path) -> str | None:
    """The name of the root element; None if the file does not start like XML.

    Raises:
        ValueError: it defines entities.
    """
    try:
        with _opened(file) as stream:
            _, root = next(iter(ElementTree.iterparse(stream, events=("start",))))
            return str(root.tag)
    except StopIteration:
        return None
    except ValueError as error:
        if isinstance(error.__cause__, DefusedXmlException):
            raise
        return None


def elements(file: Path, *tags: str) -> Iterator[Element]:
    """The children of the root with these tags, one at a time, so that big files fit in memory.

    Raises:
        ValueError: as `read_xml`.
    """
    with _opened(file) as stream:
        depth = 0
        root: Element | None = None
        for event, element in ElementTree.iterparse(stream, events=("start", "end")):
            depth += 1 if event == "start" else -1
            root = element if root is None else root
            if event == "end" and depth == 1:
                if element.tag in tags:
                    yield element
                root.clear()


def text_of(element: Element, path: str) -> str:
    """The text of a descendant without the space around it; empty if it is missing."""
    return (element.findtext(path) or "").strip()


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with require_file(file).open("rb") as stream:
            yield stream
    except DefusedXmlException as error:
        raise ValueError(f"{file}: defines entities, which annotations do not need") from error
    except (ParseError, OSError, LookupError, ValueError) as error:
        raise ValueError(f"{file}: not valid XML: {error}") from error
