"""Whether every engine that may serve a bundle gives its known answers."""

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from typing import Any

from bundle.manifest import Bundle
from engines.base import Engine
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.guard import guard
from engines.self_check import WrongAnswers, require_known_answers
from export.judge.refusal import Refused


def engines_on_cpu(bundle: Bundle) -> Iterator[Engine]:
    """Every engine that may serve a bundle on a CPU, opened one after the other, and closed."""
    with closing(guard(OnnxRuntimeEngine(bundle))) as engine:
        yield engine
    with suppress(ImportError):  # there is no OpenVINO for every platform
        from engines.cpu.openvino_engine import OpenVinoEngine

        with closing(guard(OpenVinoEngine(bundle, float_type="bf16"))) as engine:
            yield engine


def judge_answers(bundle: Bundle, engines: Iterable[Engine]) -> list[dict[str, Any]]:
    """Try engines on the known answers of their bundle; what the report says of each.

    Raises:
        Refused: one does not give them.
    """
    reports = []
    for engine in engines:
        try:
            outcomes = require_known_answers(engine, bundle)
        except WrongAnswers as error:
            raise Refused(error.fault) from error
        errors = zip(*(outcome.errors for outcome in outcomes), strict=True)
        largest = dict(zip(outcomes[0].errors._fields, map(max, errors), strict=True))
        reports.append({**engine.info._asdict(), "images": len(outcomes), **largest})
    return reports
