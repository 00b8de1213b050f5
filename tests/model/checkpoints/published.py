"""Small files as other projects publish them, and their conversion."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoints.convert import convert
from tests.data.parity.make_checkpoint import (
    SEED,
    checkpoint,
)

variants = pytest.mark.parametrize("variant", SEED)
Tensors = dict[str, Tensor]


def authors(variant: str, heads: Callable[[str, Tensor], Tensor]) -> Tensors:
    """Tensors of the authors' file with every class head replaced."""
    return {
        key: heads(key, tensor) if "class_embed." in key else tensor
        for key, tensor in checkpoint(variant, "authors")["model"].items()
    }


def numbered_head(outputs: int) -> Callable[[str, Tensor], Tensor]:
    """Class heads whose row r is all r, with the head's index for fraction."""

    def head(key: str, old: Tensor) -> Tensor:
        fraction = int(re.findall(r"class_embed\.(\d)", key)[0]) / 8
        rows = torch.arange(outputs, dtype=torch.float32) + fraction
        return rows if old.ndim == 1 else rows[:, None].expand(-1, old.shape[1]).clone()

    return head


def convert_format(directory: Path, variant: str, file_format: str) -> Any:
    path = directory / f"{variant}-{file_format}.pth"
    torch.save(checkpoint(variant, file_format), path)
    return convert(path)


def assert_same_tensors(found: Tensors, expected: Any) -> None:
    assert found.keys() == expected.state_dict.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.state_dict.items())


def share_one_head(content: dict[str, Any]) -> None:
    """All class and box heads become the first."""
    state = content["state_dict"]
    for key in [key for key in state if "_branches." in key]:
        state[key] = state[re.sub(r"branches\.\d+", "branches.0", key)]


def without(content: dict[str, Any], pattern: str) -> dict[str, Any]:
    """The file without the tensors whose names hold a pattern."""
    place = next((key for key in ("state_dict", "model") if key in content), None)
    tensors = content if place is None else content[place]
    kept = {key: tensor for key, tensor in tensors.items() if not re.search(pattern, key)}
    return kept if place is None else {**content, place: kept}
