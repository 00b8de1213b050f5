"""Finds, on a CPU, what would make a program wait for a GPU."""

import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or its size, the host has to know.
READING = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal")


class Waits(TorchFunctionMode):
    """Counts reads of tensors and copies that the host waits for, by "module.function: what".

    Every tensor counts as one of the GPU, also those that always are on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._operators = _Operators(self)

    def __enter__(self) -> "Waits":
        self._operators.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._operators.__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "")
        # Torch itself moves what is there already, as the norms of gradients.
        is_ours = not sys._getframe(1).f_globals["__name__"].startswith("torch.")
        is_copy = name == "to" and is_ours and _names_device(args[1:], options)
        is_made_there = name in ("tensor", "as_tensor") and options.get("device") is not None
        if (
            name in ("cpu", "numpy", "tolist", "new_tensor", "__array__")
            or is_made_there
            or (is_copy and not options.get("non_blocking"))
        ):
            self.add(name)
        if name in ("__getitem__", "__setitem__") and _holds_list(args[1]):
            self.add("list")
        return func(*args, **options)

    def add(self, what: str) -> None:
        """Count a wait for the function that is running, which is not torch's own."""
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].split(".")[0] == "torch" or (
            frame.f_globals["__name__"] == __name__
        ):
            assert frame.f_back is not None
            frame = frame.f_back
        function = frame.f_code.co_qualname.removesuffix(".<locals>.<genexpr>")
        self.found[f"{frame.f_globals['__name__'].split('.')[-1]}.{function}: {what}"] += 1


class _Operators(TorchDispatchMode):
    """Counts operators, including those that functions of torch are made of."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self._waits.add("item")
        if name in READING:
            self._waits.add(name)
        if name == "repeat_interleave" and "output_size" not in (kwargs or {}):
            self._waits.add(name)
        if name.startswith("index") and any(_is_mask(index) for index in _indices(args)):
            self._waits.add("mask")
        return func(*args, **(kwargs or {}))


def _names_device(arguments: Any, options: Any) -> bool:
    return any(isinstance(x, str | torch.device) for x in (*arguments, options.get("device")))


def _holds_list(index: Any) -> bool:
    return any(isinstance(part, list) for part in (index if isinstance(index, tuple) else [index]))


def _indices(args: Any) -> list[Any]:
    return list(args[1]) if len(args) > 1 and isinstance(args[1], list | tuple) else []


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
