"""The exchange with the service, step by step, independent of how a client waits.

A conversation is a generator of steps. The client takes each step and sends back the outcome: for a
`Send`, the answer or why there was none. The return value is what the caller wanted.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeAlias, TypeVar

import httpx

from detr_client.errors import DetrError, Unreachable, read_answer
from detr_client.images import File, ImageLike, several, to_file
from detr_client.options import Options, given
from detr_client.results import ImageResult
from detr_client.retries import Retries


class Send(NamedTuple):
    """Send a request."""

    method: str
    path: str
    options: dict[str, Any]


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Outcome: TypeAlias = httpx.Response | httpx.RequestError | None
T = TypeVar("T")
Conversation: TypeAlias = Generator[Send | Pause, Outcome, T]


class Batching(NamedTuple):
    """How many images, and how many bytes, share a request; the service limits both."""

    most_images: int = 16
    most_bytes: int = 30_000_000


def ask(send: Send, retries: Retries) -> Conversation[httpx.Response]:
    """One request, sent again as long as that may help.

    Raises:
        DetrError: the service answered with an error.
        Unreachable: there was no answer, or none that can be read.
    """
    for num_tries in count(1):
        outcome = yield send
        assert outcome is not None
        pause_s = retries.pause_s(outcome, num_tries)
        if pause_s is None:
            return _checked(outcome)
        yield Pause(pause_s)
    raise AssertionError("count never ends")


def ask_model(model: str | None, retries: Retries) -> Conversation[dict[str, Any]]:
    """What GET /model says about this model, or about the first if None."""
    response = yield from ask(Send("GET", "/model", {"params": _model_param(model)}), retries)
    return read_answer(response, _model)


def ask_detections(
    images: Iterable[ImageLike],
    image_ids: Sequence[int] | None,
    *,
    model: str | None,
    options: Options,
    batching: Batching,
    retries: Retries,
) -> Conversation[list[ImageResult]]:
    """The detections of any number of images, in as many requests as they need.

    Raises:
        ValueError, TypeError, OSError: see `to_file`; or there is not one image id per image.
        TypeError: see `given` and `several`.
    """
    images = several(images)
    params = given(options) | _model_param(model)
    ids = range(len(images)) if image_ids is None else image_ids
    if len(ids) != len(images):
        raise ValueError(f"expected one image id per image, got {len(ids)} for {len(images)}")
    if "tile" in params:
        batching = batching._replace(most_images=1)  # tiles count as images
    results: list[ImageResult] = []
    for files in batches(images, batching):
        some_ids = ids[len(results) : len(results) + len(files)]
        form = {
            "files": [("images", (file.sent_name, file.data)) for file in files],
            "data": {"image_ids": ",".join(map(str, some_ids))},
        }
        response = yield from ask(Send("POST", "/detect", {**form, "params": params}), retries)
        results += read_answer(response, partial(_results, files))
    return results


def batches(images: Sequence[ImageLike], batching: Batching) -> Iterator[list[File]]:
    """The files of the images, read when needed, in groups within the limits."""
    group: list[File] = []
    for index, image in enumerate(images):
        file = to_file(image, f"image-{index}")
        num_bytes = sum(len(one.data) for one in group) + len(file.data)
        if group and (len(group) == batching.most_images or num_bytes > batching.most_bytes):
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _model(answer: Any) -> dict[str, Any]:
    return {**answer}


def _results(files: Sequence[File], answer: Any) -> list[ImageResult]:
    """One for each file, under its own name: a form cannot hold every character of it."""
    return [
        replace(ImageResult.from_json(result), file_name=file.name)
        for file, result in zip(files, answer["results"], strict=True)
    ]


def _model_param(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def _checked(outcome: httpx.Response | httpx.RequestError) -> httpx.Response:
    if isinstance(outcome, httpx.RequestError):
        message = str(outcome) or type(outcome).__name__
        raise Unreachable(f"no answer from the service: {message}") from outcome
    if not outcome.is_success:
        raise DetrError.from_response(outcome)
    return outcome
