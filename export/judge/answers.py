"""Whether every engine that may serve a bundle gives its known answers."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any

import torch

from bundle.manifest import Bundle
from engines.base import Engine, FloatType
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.guard import guard
from engines.load import open_engine
from engines.self_check import WrongAnswers, require_known_answers
from export.judge.refusal import Refused
from plugins.gpu_kernels import gpu_kernels

log = logging.getLogger(__name__)

OpenEngine = Callable[[Bundle], Engine]


def engines_on_cpu(bundle: Bundle) -> Iterator[Engine]:
    """Every engine that may serve a bundle on a CPU, opened one after the other, and closed.

    OpenVINO may serve bf16 and int8 in two ways, as it measures which type of floats is faster.
    """
    with closing(guard(OnnxRuntimeEngine(bundle), bundle.manifest)) as engine:
        yield engine
    with suppress(ImportError):  # OpenVINO does not exist for every platform
        from engines.cpu.openvino_engine import OpenVinoEngine

        has_choice = bundle.manifest.precision in ("bf16", "int8")
        float_types: tuple[FloatType, ...] = ("bf16", "fp32") if has_choice else ("fp32",)
        for float_type in float_types:
            opened = OpenVinoEngine(bundle, float_type=float_type)
            with closing(guard(opened, bundle.manifest)) as engine:
                yield engine


def find_torch_cuda() -> OpenEngine | None:
    """What opens the engine torch-cuda, if this machine has a GPU that it runs on."""
    if not torch.cuda.is_available() or gpu_kernels() is None:
        return None
    return partial(open_engine, engine="torch-cuda")


def engines_in_torch(bundle: Bundle, open_torch: OpenEngine | None) -> Iterator[Engine]:
    """The engine torch-cuda, opened and closed, where it can run the bundle.

    Whether it can may depend on what else runs on the GPU, so a bundle is written without it.
    """
    if open_torch is None or bundle.manifest.precision in ("int8", "fp8"):
        return
    try:
        opened = open_torch(bundle)
    except ValueError as error:
        log.warning("the engine torch-cuda was not tested: %s", error)
        return
    with closing(guard(opened, bundle.manifest)) as engine:
        yield engine


def judge_answers(bundle: Bundle, engines: Iterable[Engine]) -> list[dict[str, Any]]:
    """Try engines on the known answers of their bundle; returns an entry of the report for each.

    Raises:
        Refused: an engine does not give them.
    """
    reports = []
    for engine in engines:
        try:
            outcomes, _ = require_known_answers(engine, bundle, at_full_size=True)
        except WrongAnswers as error:
            raise Refused(error.fault) from error
        errors = zip(*(outcome.errors for outcome in outcomes), strict=True)
        largest = dict(zip(outcomes[0].errors._fields, map(max, errors), strict=True))
        reports.append({**engine.info._asdict(), "tries": len(outcomes), **largest})
    return reports
