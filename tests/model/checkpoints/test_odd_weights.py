"""Tensors that are no plain weights, or of another form, are refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.convert import convert
from tests.data.parity.make_checkpoint import checkpoint

EMBED, HEAD = "transformer.level_embed", "class_embed.0.weight"


def write_with(path: Path, changes: dict[str, Tensor]) -> Path:
    """A file of the authors in which some tensors are others."""
    torch.save({"model": checkpoint("base", "authors")["model"] | changes}, path)
    return path


def of(name: str) -> Tensor:
    tensor: Tensor = checkpoint("base", "authors")["model"][name]
    return tensor


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: x.to(torch.int8), "int8"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: x.to_sparse(), r"float32 \(sparse_coo\)"),
        (lambda x: x.to("meta"), r"float32 \(meta\)"),
        (lambda x: x.sum(), r"float32 \(strided\) of shape \(\)"),
    ],
    ids=["int8", "complex", "sparse", "meta", "scalar"],
)
def test_what_is_not_a_plain_weight_is_refused(
    tmp_path: Path, make: Callable[[Tensor], Tensor], kind: str
) -> None:
    path = write_with(tmp_path / "x.pth", {EMBED: make(of(EMBED))})

    with pytest.raises(
        ValueError, match=rf"tensor {EMBED} is {kind}.*expected floating-point numbers"
    ) as error:
        convert(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (HEAD, lambda x: x.T, r"class_heads\.0\.weight has shape \(256, 7\), expected \(7, 256\)"),
        (HEAD, lambda x: x.flatten(), r"class_heads\.0\.weight has shape \(1792,\)"),
        (EMBED, lambda x: x[0], r"level_embed has shape \(256,\), expected \(levels, channels\)"),
        (EMBED, lambda x: x * torch.nan, "level_embed holds a value that is not finite"),
    ],
    ids=["transposed", "flat", "a row", "nan"],
)
def test_a_tensor_of_another_form_is_refused(
    tmp_path: Path, name: str, make: Callable[[Tensor], Tensor], message: str
) -> None:
    path = write_with(tmp_path / "x.pth", {name: make(of(name)).contiguous()})

    with pytest.raises(ValueError, match=message):
        convert(path)


def test_a_head_with_fewer_rows_than_outputs_is_refused(tmp_path: Path) -> None:
    names = [f"class_embed.{i}.bias" for i in range(6)]
    biases = {
        name: torch.zeros(91) for name in names if name in checkpoint("base", "authors")["model"]
    }
    path = write_with(tmp_path / "x.pth", biases)

    with pytest.raises(ValueError, match=r"tensor class_heads\.0\.weight has 7 rows, expected 91"):
        convert(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write_with(tmp_path / "x.pth", {EMBED: of(EMBED).to(dtype)})

    assert convert(path).state_dict["level_embed"].dtype == torch.float32
