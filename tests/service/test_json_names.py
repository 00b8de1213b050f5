"""A name that an object of a JSON body has twice is found; nothing else is taken for one."""

import json

import httpx
import pytest

from service.json_names import name_given_twice


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"a": 1, "b": {"c": 1}, "a": 2}', "a"),
        ('{"b": [{"c": 1}, {"c": 1 , "c"\n: 2}]}', "c"),
        ('{"b": {"a": {"b": 1}}, "b": 2}', "b"),
        (r'{"im\u0061ge": 1, "image": 2}', "image"),
        (r'{"\"": 1, "\u0022": 2}', '"'),
        (r'{"\\": "\\", "\\": "\""}', "\\"),
    ],
)
def test_a_name_that_an_object_has_twice_is_found(body: str, name: str) -> None:
    assert json.loads(body)

    assert name_given_twice(body.encode()) == name


@pytest.mark.parametrize(
    "body",
    [
        '{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]}',
        '{"a": "a", "b": ["a", "a", ":", "a"], "c": ":a\' {\\"a\\": 1, \\"a\\": 2}"}',
        r'{"a": "\\", "b": "\\\"", "c": "}{", "d": "\\\\", "\\": ",", "\"": "\u0022:"}',
    ],
)
def test_nothing_else_is_taken_for_one(body: str) -> None:
    assert json.loads(body)

    assert name_given_twice(body.encode()) is None


@pytest.mark.parametrize("token", ["{}", '"a"'])
def test_very_many_texts_or_objects_are_not_looked_through(token: str) -> None:
    with pytest.raises(ValueError, match="at most 100000 texts and objects"):
        name_given_twice(f'{{"a": [{",".join([token] * 100_000)}]}}'.encode())


def test_an_input_of_the_inference_protocol_is_given_once(address: str) -> None:
    body = '{"inputs": [{"name": "image", "data": ["eA=="], "data": ["eQ=="]}]}'

    answer = httpx.post(f"{address}/v2/models/toy/infer", content=body)

    assert answer.status_code == 422
    assert "'data' is given more than once" in answer.json()["error"]
