"""What the OpenAPI description says about the served models and the settings."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from service.schemas import FILE_FIELDS, DetectQuery
from service.serving import Serving
from service.settings import Settings
from service.tensors import InferRequest

Schema = dict[str, Any]
_COMPONENTS = "#/components/schemas/{model}"


def complete(description: Schema, *, serving: Serving, settings: Settings) -> None:
    """Add models, classes and the limit on images to FastAPI's description.

    If there are several models, the classes and limits of all are listed together.
    """
    for operation in _operations(description):
        for parameter in operation.get("parameters", ()):
            _complete_parameter(parameter, serving)
        content = operation.get("requestBody", {}).get("content", {})
        for body in content.values():
            images = body["schema"].get("properties", {}).get(FILE_FIELDS[0])
            if images is not None:
                as_list = images.get("anyOf", [images])[0]
                as_list["maxItems"] = settings.max_images
    for sent in (InferRequest, DetectQuery):
        parts = sent.model_json_schema(ref_template=_COMPONENTS).get("$defs", {})
        description["components"]["schemas"].update(parts)


def query_parameters(query: type[BaseModel]) -> list[Schema]:
    """The parameters of a query; `complete` adds their parts to the components."""
    properties = query.model_json_schema(ref_template=_COMPONENTS)["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {key: schema[key] for key in schema if schema[key] is not None},
            "description": schema["description"],
        }
        for name, schema in properties.items()
    ]


def infer_request() -> Schema:
    """The schema of an inference request; `complete` adds its parts to the components."""
    schema = InferRequest.model_json_schema(ref_template=_COMPONENTS)
    schema.pop("$defs", None)
    return schema


def _complete_parameter(parameter: Schema, serving: Serving) -> None:
    manifests = [model.detector.manifest for model in serving.models]
    name, schema = parameter["name"], parameter["schema"]
    is_optional = "anyOf" in schema
    inner = schema["anyOf"][0] if is_optional else schema
    if name == "classes":
        known = [info for manifest in manifests for info in manifest.classes]
        texts = [text for info in known for text in (info.name, str(info.id))]
        inner["items"]["enum"] = list(dict.fromkeys(texts))
    elif name == "num_detections":
        inner["maximum"] = max(manifest.num_detections for manifest in manifests)
    elif name in ("model", "name"):
        inner["enum"] = serving.names


def _operations(description: Schema) -> Iterator[Schema]:
    paths: Iterable[Schema] = description["paths"].values()
    for path in paths:
        yield from path.values()
