"""Foreign files: what they may hold, and that nothing in them runs."""

import argparse
import pickle
import sys
import types
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from model.checkpoints.published_file import read_content, read_settings
from model.checkpoints.published_layouts import Layout

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


class HistoryBuffer:
    """Pickles as mmengine's class of that name: numpy arrays and references to own methods."""

    def __init__(self) -> None:
        self._log_history = np.array([1.0, 2.0])

    def mean(self) -> float:
        return float(self._log_history.mean())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"statistics_methods": {"mean": HistoryBuffer.mean}}


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """HistoryBuffer lives where mmengine has it."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def _write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def _assert_is_state(tensors: dict[str, torch.Tensor]) -> None:
    assert list(tensors) == list(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"optimizer": {"state": {}}, "epoch": 49},
        {"meta": {"hook_msgs": {"best": np.float64(0.4), "n": np.int64(3)}}},
        {"lr_scheduler": {"milestones": Counter({40: 1})}, "epoch": 1},
    ],
    ids=["alone", "optimizer", "numpy", "scheduler"],
)
def test_what_training_stores_beside_tensors_does_no_harm(
    tmp_path: Path, extra: dict[str, Any], is_zip: bool
) -> None:
    content = {"model": OrderedDict(STATE), **extra}
    path = _write(tmp_path / "x.pth", content, _use_new_zipfile_serialization=is_zip)

    _assert_is_state(read_content(path)["model"])


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.bin"])
def test_the_content_of_a_file_tells_its_format_not_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(safetensors.torch.save(STATE))

    _assert_is_state(dict(sorted(read_content(tmp_path / name).items())))


def test_settings_of_the_authors_file_are_read(tmp_path: Path) -> None:
    args = argparse.Namespace(
        nheads=4, num_queries=50, coco_path="./data/coco", output_dir=tmp_path
    )

    path = _write(tmp_path / "x.pth", {"model": STATE, "args": args})
    settings = read_settings(path, read_content(path), layout=Layout.AUTHORS)

    assert (settings.get("num_heads"), settings.get("num_queries")) == (4, 50)
    assert settings.class_names is None


@pytest.mark.usefixtures("mmengine")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_training_history_of_mmengine_is_passed_over(tmp_path: Path, is_zip: bool) -> None:
    stored = {
        "meta": {"dataset_meta": {"classes": ("cat", "dog")}},
        "state_dict": STATE,
        "message_hub": {"log_scalars": OrderedDict({"train/loss": HistoryBuffer()})},
    }
    path = _write(tmp_path / "x.pth", stored, _use_new_zipfile_serialization=is_zip)

    content = read_content(path)

    _assert_is_state(content["state_dict"])
    assert read_settings(path, content, layout=Layout.MMDET3).class_names == ("cat", "dog")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_named_and_never_runs(tmp_path: Path, is_zip: bool) -> None:
    trace = tmp_path / "trace"
    content = {"state_dict": STATE, "meta": {"x": Bomb(trace)}}
    path = _write(tmp_path / "x.pth", content, _use_new_zipfile_serialization=is_zip)

    with pytest.raises(ValueError, match=r"object of .*open, which is not loaded.*strip it"):
        read_content(path)

    assert not trace.exists()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path: Path, is_zip: bool) -> None:
    path = _write(tmp_path / "x.pth", STATE, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(ValueError, match=r"x\.pth is not a complete file of torch\.save"):
        read_content(path)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps([1], protocol=2))

    with pytest.raises(ValueError, match=r"x\.pth (is not a complete file|holds a list)"):
        read_content(path)


def test_a_config_beside_a_file_of_another_project_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"activation_function": "gelu"}')

    settings = read_settings(tmp_path / "x.pth", {"model": STATE}, layout=Layout.AUTHORS)

    assert settings.values == {}


def test_a_tensor_alone_is_not_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a Tensor, expected a state dict"):
        read_content(_write(tmp_path / "x.pth", torch.ones(2)))


def test_a_broken_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save(STATE)[:-4])

    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_content(path)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name the file itself"):
        read_content(tmp_path)


@pytest.mark.parametrize("length", [7, 8, 9, 100])
def test_the_start_of_a_safetensors_file_is_not_a_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save(STATE)[:length])

    with pytest.raises(
        ValueError, match=r"model\.safetensors is not a complete file|not a complete safe"
    ):
        read_content(path)
