"""Opens the engine of a bundle and warms it up on the known answers, within a time limit."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from bundle.known_answers import read_known_answers
from bundle.manifest import Bundle
from bundle.preprocess import Uint8Array
from engines.base import Engine, EngineFailure
from engines.guard import GuardedEngine, guard
from engines.load import GpuOptions, open_engine
from engines.self_check import Outcome, require_known_answers
from service.settings import Settings

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
OpenEngine = Callable[[Bundle, Settings], Engine]


class CannotStart(Exception):
    """Why a bundle is not served, in one line."""


class Started(NamedTuple):
    """An engine that may serve."""

    engine: GuardedEngine
    outcomes: Sequence[Outcome]  # of the known answers
    warm_up_s: float  # the longest run on them
    known_image: Uint8Array  # the first of them; the bundle's directory may hold another by now


def open_served(bundle: Bundle, settings: Settings) -> Engine:
    """The engine that the settings name.

    Raises:
        ValueError: see `open_engine`.
    """
    return open_engine(
        bundle,
        engine=settings.engine,
        threads=settings.engine_threads,
        mode=settings.engine_mode,
        gpu=GpuOptions(settings.rebuild_engine, settings.cuda_graphs, settings.device),
    )


async def load_bundle(directory: Path, settings: Settings) -> Bundle:
    """The bundle in a directory, with every file checked.

    Raises:
        CannotStart: it is missing or damaged, or takes too long.
    """
    load = partial(Bundle.load, directory)
    return await _within_limit(load, settings.start_timeout_s, fault="the bundle is not read")


async def start_engine(bundle: Bundle, settings: Settings, *, open_it: OpenEngine) -> Started:
    """Open the engine of a bundle, and warm it up by testing it on the known answers.

    Raises:
        CannotStart: any of that failed, or took longer than the settings allow.
    """
    start = partial(_start, bundle, settings, open_it)
    return await _within_limit(start, settings.start_timeout_s, fault="the engine is not ready")


async def _within_limit(call: Callable[[], Value], limit_s: float, *, fault: str) -> Value:
    """Run a call in a new thread, which is abandoned once the time is over."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="start")
    future = asyncio.wrap_future(executor.submit(call))
    executor.shutdown(wait=False)
    done, _ = await asyncio.wait({future}, timeout=limit_s)
    if not done:
        raise CannotStart(
            f"{fault} after {limit_s:g} s; it hangs, or DETR_START_TIMEOUT_S is too short for it"
        )
    error = future.exception()  # not raised here: SystemExit would end the event loop
    if error is not None:
        raise CannotStart(_describe(error)) from error
    return future.result()


def _start(bundle: Bundle, settings: Settings, open_it: OpenEngine) -> Started:
    engine = guard(open_it(bundle, settings), bundle.manifest)
    try:
        outcomes, longest_run_s = require_known_answers(
            engine,
            bundle,
            max_batch_size=settings.limit_batch(engine.max_batch_size),
            at_full_size=True,
        )
        known_image = read_known_answers(bundle.directory)[0].image
        bundle.require_in_place()
    except BaseException:
        engine.close()
        bundle.require_in_place()  # else that is why
        raise
    place = bundle.directory  # two models may have one name
    logger.info("%s: the engine gives the known answers; tries: %d", place, len(outcomes))
    info = ", ".join(f"{name} {value}" for name, value in engine.info._asdict().items())
    logger.info("%s: the engine is warm: %s", place, info)
    return Started(engine, outcomes, longest_run_s, known_image)


def _describe(error: BaseException) -> str:
    """The error in one line, with its type if it is an unexpected one."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | EngineFailure):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
