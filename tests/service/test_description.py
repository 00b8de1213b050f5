"""The OpenAPI description, as /docs shows it, and whether the answers match it."""

from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from service import errors
from service.description import error_responses
from service.schemas import CocoResult, DetectResponse, ErrorResponse

Kind = type[errors.ServiceError]
UNSEEN: set[Kind] = {
    *(errors.NotFound, errors.MethodNotAllowed, errors.ClientGone),
    *(errors.Forbidden, errors.ReloadRefused),  # of /admin/reload
}
KINDS: list[Kind] = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ServiceError) and kind not in UNSEEN
]


@pytest.fixture(scope="module")
def description(address: str) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{address}/openapi.json").json()
    return described


@pytest.fixture(scope="module")
def responses(description: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = description["paths"]["/detect"]["post"]["responses"]
    return described


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_detection_is_described_with_an_example(
    responses: dict[str, Any], kind: Kind
) -> None:
    response = responses[str(kind.status)]

    example = response["content"]["application/json"]["examples"][kind.code]["value"]
    assert f"`{kind.code}`: " in response["description"]
    assert ErrorResponse.model_validate(example).error.code == kind.code


@pytest.mark.parametrize("text", [None, ""])
def test_an_error_without_a_docstring_stands_for_itself(
    text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors.NoImage, "__doc__", text)  # as PYTHONOPTIMIZE=2 does

    assert "`no_image`: no_image" in error_responses()[422]["description"]


def test_the_examples_of_answers_are_answers(responses: dict[str, Any]) -> None:
    examples = responses["200"]["content"]["application/json"]["examples"]

    answer = TypeAdapter(DetectResponse).validate_python(examples["detections"]["value"])
    assert answer["results"][0]["detections"]
    assert TypeAdapter(list[CocoResult]).validate_python(examples["coco"]["value"])


def nodes(node: Any) -> list[dict[str, Any]]:
    """Every object of the description."""
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [*([node] if isinstance(node, dict) else []), *(n for b in below for n in nodes(b))]


def test_no_example_is_made_of_nulls(description: dict[str, Any]) -> None:
    """Of a tuple without an example, the page shows as many nulls."""
    tuples = [node for node in nodes(description) if "prefixItems" in node]

    assert len(tuples) >= 2
    assert [one for one in tuples if not {"examples", "default"} & one.keys()] == []
