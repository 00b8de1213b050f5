"""Parts of a model that a run does not train."""

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn


def freeze_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Exclude the parameters whose names begin with one of `names` from training.

    A name is a part of the model ("encoder", "decoder.layers.0") or a parameter.

    Raises:
        ValueError: a name is not in the model, or nothing would be left to train.
    """
    for name in names:
        parameters = [
            p for known, p in model.named_parameters() if f"{known}.".startswith(f"{name}.")
        ]
        if not parameters:
            parts = dict.fromkeys(known for known, _ in model.named_modules() if known)
            near = get_close_matches(name, parts) or [part for part in parts if "." not in part]
            raise ValueError(
                f"freeze: {name!r} is not a part of the model; near are {', '.join(near)}"
            )
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze={','.join(names)} leaves nothing to train")
