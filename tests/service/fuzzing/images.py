"""Hooks of schemathesis: what is sent as an image is one, and no ids are sent with images.

A schema can say neither what an image is nor that there are as many ids as images; without this,
what it allows would be refused.
"""

import base64
import io
from typing import Any

import schemathesis
from hypothesis import strategies
from PIL import Image


def _file(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(buffer, kind)
    return buffer.getvalue()


FILES = strategies.sampled_from([_file(kind) for kind in ("JPEG", "PNG", "WEBP")])
schemathesis.openapi.format("binary", FILES)
schemathesis.openapi.format("byte", FILES.map(lambda data: base64.b64encode(data).decode()))
for media_type in ("image/*", "image/png", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, FILES)


@schemathesis.hook
def before_load_schema(_: Any, raw_schema: dict[str, Any]) -> None:
    """Leave out the ids of images."""
    for body in raw_schema["paths"]["/detect"]["post"]["requestBody"]["content"].values():
        body["schema"].get("properties", {}).pop("image_ids", None)
