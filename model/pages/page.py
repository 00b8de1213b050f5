"""Pages that open without a network: template, style and pictures end up in one HTML file."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bundle.terminal import shortened

_FOLDER = Path(__file__).parent


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """The page that a template of this folder makes, in UTF-8. Text in `values` is escaped."""
    style = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    page = _environment().get_template(template).render({"style": style, **values})
    return page.encode(errors="xmlcharrefreplace")  # names of files may have lone surrogates


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shortened"] = shortened
    return environment
