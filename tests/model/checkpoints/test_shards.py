"""Weights in several files are read by their index, and missing ones are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from model.checkpoints.convert import convert
from model.checkpoints.published_file import read_content
from tests.data.parity.make_checkpoint import checkpoint

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1), "c": torch.zeros(2)}
PARTS = ["model-00001-of-00002", "model-00002-of-00002"]


def write_parts(directory: Path, state: dict[str, torch.Tensor], ending: str) -> Path:
    """The first tensor in one file, the others in a second; returns their index."""
    first = next(iter(state))
    parts = [{first: state[first]}, {name: x for name, x in state.items() if name != first}]
    named = {}
    for name, part in zip(PARTS, parts, strict=True):
        path = directory / f"{name}{ending}"
        torch.save(part, path) if ending == ".bin" else safetensors.torch.save_file(part, path)
        named.update(dict.fromkeys(part, path.name))
    index = directory / f"model{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": named}))
    return index


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_all_parts_are_read_as_one(tmp_path: Path, ending: str) -> None:
    content = read_content(write_parts(tmp_path, STATE, ending))

    assert sorted(content) == sorted(STATE)
    assert all(torch.equal(content[name], STATE[name]) for name in STATE)


def test_a_model_in_parts_is_converted_and_its_parts_are_on_record(tmp_path: Path) -> None:
    state = {name: x.contiguous() for name, x in checkpoint("base", "hf4").items()}
    index = write_parts(tmp_path, state, ".bin")

    converted = convert(index)

    assert converted.config.model.num_queries == 20
    assert list(converted.provenance["parts"]) == [f"{name}.bin" for name in PARTS]
    assert all(len(digest) == 64 for digest in converted.provenance["parts"].values())


def test_a_part_alone_names_the_index(tmp_path: Path) -> None:
    write_parts(tmp_path, STATE, ".safetensors")

    with pytest.raises(ValueError, match=r"one of several parts .*model\.safetensors\.index\.json"):
        read_content(tmp_path / f"{PARTS[1]}.safetensors")


def test_the_only_part_is_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00001.safetensors"
    safetensors.torch.save_file(STATE, path)

    assert sorted(read_content(path)) == sorted(STATE)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    index = write_parts(tmp_path, STATE, ".bin")
    (tmp_path / f"{PARTS[1]}.bin").unlink()

    with pytest.raises(ValueError, match=rf"missing: 1 of 2, such as {PARTS[1]}"):
        read_content(index)


def test_a_tensor_that_its_part_lacks_is_named(tmp_path: Path) -> None:
    index = write_parts(tmp_path, STATE, ".bin")
    torch.save({"b": STATE["b"]}, tmp_path / f"{PARTS[1]}.bin")

    with pytest.raises(ValueError, match=rf"says that {PARTS[1]}\.bin holds c, but it does not"):
        read_content(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": "../x.bin"}}, r"names '\.\./x\.bin', expected a file beside it"),
        ({"weight_map": {"a": "/x.bin"}}, "expected a file beside it"),
        ({"weight_map": {"a": 3}}, "names 3, expected a file beside it"),
        ({"weight_map": {"a": "model.bin.index.json"}}, "expected a file beside it"),
        ([], "expected a JSON object"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps(content))

    with pytest.raises(ValueError, match=message):
        read_content(index)
