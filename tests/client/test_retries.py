"""When detr_client asks again; the network and the clock are stand-ins."""

import email.utils
import io
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from detr_client import AsyncDetrClient, Batching, DetrClient, DetrError, Retries, Unreachable
from service.settings import Settings

BUSY = {"error": {"code": "overloaded", "message": "the queue is full"}}
NOTHING: dict[str, object] = {"image_id": 0, "file_name": None, "width": 1, "height": 1}


class Service:
    """Gives these answers in turn, the last one for ever, and counts."""

    def __init__(self, *answers: httpx.Response | httpx.RequestError) -> None:
        self.answers = list(answers)
        self.pauses_s: list[float] = []
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, httpx.RequestError):
            raise answer
        return answer

    def client(self, most: int = 5, first_s: float = 0.5) -> DetrClient:
        return DetrClient(
            "http://test",
            retries=Retries(most=most, first_s=first_s),
            transport=httpx.MockTransport(self),
            sleep=self.pauses_s.append,
        )


def busy(status: int = 503, *, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json=BUSY, headers=headers)


def done() -> httpx.Response:
    return httpx.Response(200, json={"results": [NOTHING | {"detections": []}]})


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_service_is_asked_again_after_the_time_it_names(status: int) -> None:
    service = Service(busy(status, retry_after="7"), busy(status), done())

    service.client().detect(b"x")

    assert service.pauses_s[0] == 7
    assert len(service.requests) == 3


def test_the_time_may_be_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    service = Service(busy(retry_after=date), done())

    service.client().detect(b"x")

    assert service.pauses_s == [pytest.approx(30, abs=5)]


@pytest.mark.parametrize("date", ["Wed, 21 Oct 2015 07:28:00 GMT", "0"])
def test_a_moment_that_has_passed_means_no_wait(date: str) -> None:
    service = Service(busy(retry_after=date), done())

    service.client().detect(b"x")

    assert service.pauses_s == [0]


def test_a_service_that_names_no_wait_again_and_again_is_left_alone_longer_and_longer() -> None:
    service = Service(busy(retry_after="0"))

    with pytest.raises(DetrError, match="the queue is full"):
        service.client(most=4, first_s=1).detect(b"x")

    assert [round(np.log2(max(pause, 0.1)) + 0.5) for pause in service.pauses_s] == [-3, 1, 2, 3]


@pytest.mark.parametrize("value", ["", "soon", "-1", f"1 Jan 2020 00:00:00 +{10**20}"])
def test_pauses_double_where_no_time_is_named(value: str) -> None:
    service = Service(busy(retry_after=value))

    with pytest.raises(DetrError, match="the queue is full"):
        service.client(most=4, first_s=1).detect(b"x")

    assert [round(np.log2(pause) + 0.5) for pause in service.pauses_s] == [0, 1, 2, 3]
    assert len(service.requests) == 5


def test_pauses_double_only_up_to_the_longest() -> None:
    service = Service(busy())

    with pytest.raises(DetrError):
        service.client(most=3, first_s=100).detect(b"x")

    assert max(service.pauses_s) <= Retries().longest_s


def test_options_of_0_are_sent() -> None:
    service = Service(done())

    service.client().detect(b"x", threshold=0.0, nms_iou=0.0, classes=None)

    assert dict(service.requests[0].url.params) == {"threshold": "0.0", "nms_iou": "0.0"}


def test_a_longer_wait_than_allowed_is_not_made() -> None:
    service = Service(busy(retry_after="61"), done())

    with pytest.raises(DetrError) as caught:
        service.client().detect(b"x")

    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert service.pauses_s == []


def test_a_broken_connection_is_tried_again_with_the_whole_request() -> None:
    service = Service(httpx.ReadError("reset"), httpx.ConnectError("refused"), done())

    service.client().detect(b"content")

    first, *_, last = service.requests
    assert len(service.requests) == 3
    assert b"content" in first.content
    assert b"content" in last.content


@pytest.mark.parametrize(
    ("error", "said"),
    [(httpx.ConnectError("refused"), ": refused"), (httpx.ReadTimeout(""), ": ReadTimeout")],
)
def test_no_answer_at_all_is_reported(error: httpx.TransportError, said: str) -> None:
    service = Service(error)

    with pytest.raises(Unreachable, match=said):
        service.client(most=2).detect(b"x")

    assert len(service.requests) == 3


def test_an_address_without_http_is_reported_at_once() -> None:
    pauses_s: list[float] = []

    with (
        DetrClient("localhost:8000", sleep=pauses_s.append) as client,
        pytest.raises(Unreachable, match="unsupported protocol 'localhost"),
    ):
        client.detect(b"x")

    assert pauses_s == []


def test_a_header_that_cannot_be_sent_is_reported_at_once() -> None:
    service = Service(httpx.LocalProtocolError("Illegal header value"), done())

    with pytest.raises(Unreachable, match="Illegal header value"):
        service.client().detect(b"x")

    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422, 500])
def test_a_request_at_fault_is_not_sent_again(status: int) -> None:
    service = Service(busy(status), done())

    with pytest.raises(DetrError) as caught:
        service.client().detect(b"x")

    assert caught.value.status == status
    assert service.pauses_s == []


@pytest.mark.parametrize("body", ["<html>", "[]", '{"error": "x"}', '{"error": {"code": 1}}'])
def test_an_error_of_a_proxy_is_reported_as_it_is(body: str) -> None:
    service = Service(httpx.Response(400, text=body))

    with pytest.raises(DetrError, match="status 400") as caught:
        service.client().detect(b"x")

    assert body in caught.value.message
    assert caught.value.code is None


@pytest.mark.parametrize(
    "body", ["<html>", "[]", '{"results": [{}]}', '{"results": 1}', '{"results": []}']
)
def test_an_answer_that_is_not_of_the_service_is_reported(body: str) -> None:
    service = Service(httpx.Response(200, text=body))

    with pytest.raises(DetrError, match="expected an answer of the service") as caught:
        service.client().detect(b"x")

    assert caught.value.status == 200
    assert body in caught.value.message


def test_an_answer_that_cannot_be_unpacked_is_none() -> None:
    broken = httpx.DecodingError("incorrect header check")
    service = Service(broken, done())

    result = service.client().detect(b"x")

    assert result.detections == ()
    with pytest.raises(Unreachable, match="incorrect header check"):
        Service(broken).client().detect(b"x")


@pytest.mark.parametrize(
    "name", ['an "odd"\nname.png', pytest.param("\udcff.png", id="not Unicode")]
)
def test_a_result_has_the_name_of_its_file(tmp_path: Path, name: str) -> None:
    service = Service(done())
    photo = tmp_path / name
    photo.write_bytes(b"x")

    result = service.client().detect(photo)

    assert result.file_name == name


@pytest.mark.anyio
async def test_the_async_client_asks_again_too() -> None:
    service = Service(busy(retry_after="7"), httpx.ReadError("reset"), done())

    async def pause(seconds: float) -> None:
        service.pauses_s.append(seconds)

    transport = httpx.MockTransport(service)
    async with AsyncDetrClient("http://test", transport=transport, sleep=pause) as client:
        await client.detect(b"x")

    assert service.pauses_s[0] == 7
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        ("http://x.org/a.jpg", ValueError, "got the URL"),
        ("HTTPS://X.ORG/A.JPG", ValueError, "got the URL"),
        ("no such file.jpg", FileNotFoundError, "no such file"),
        (np.zeros((4, 4, 3)), ValueError, r"uint8 in RGB, got \(4, 4, 3\) of float64"),
        (np.zeros((3, 5, 5), np.uint8), ValueError, r"got \(3, 5, 5\) of uint8"),
        (np.zeros((4, 4, 1), np.uint8), ValueError, r"got \(4, 4, 1\) of uint8"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\)"),
        (Image.new("CMYK", (4, 4)), ValueError, r"image.convert\('RGB'\)"),
        (None, TypeError, "got NoneType"),
        (7, TypeError, "got int"),
    ],
)
def test_what_is_not_an_image_is_refused_before_anything_is_sent(
    image: object, kind: type[Exception], message: str
) -> None:
    service = Service(done())

    with pytest.raises(kind, match=message):
        service.client().detect(image)  # type: ignore[arg-type]

    assert service.requests == []


@pytest.mark.parametrize(
    "image",
    [
        "photo.jpg",
        Path("photo.jpg"),
        b"x",
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        Image.new("L", (4, 4)),
        io.BytesIO(b"x\nx"),
    ],
    ids=lambda image: type(image).__name__,
)
def test_one_image_where_several_are_expected_is_not_taken_apart(image: Any) -> None:
    service = Service(done())

    with pytest.raises(TypeError, match="expected a list of images, got one image"):
        service.client().detect_many(image)

    assert service.requests == []


def test_images_may_come_one_by_one() -> None:
    service = Service(done())
    client = DetrClient(
        "http://test", batching=Batching(most_images=1), transport=httpx.MockTransport(service)
    )

    results = client.detect_many(image for image in (b"x", b"y"))

    assert len(results) == len(service.requests) == 2


def test_image_ids_that_do_not_fit_the_images_are_refused() -> None:
    client = Service(done()).client()

    with pytest.raises(ValueError, match="got 2 for 1"):
        client.detect_many([b"x"], image_ids=[1, 2])
    with pytest.raises(ValueError, match="got 0 for 1"):
        client.detect_many([b"x"], image_ids=[])


def test_requests_hold_no_more_bytes_than_asked_for_unless_it_is_one_image() -> None:
    nums_images = []

    def answer(request: httpx.Request) -> httpx.Response:
        nums_images.append(request.read().count(b'name="images"'))
        result = NOTHING | {"detections": []}
        return httpx.Response(200, json={"results": [result] * nums_images[-1]})

    batching, transport = Batching(most_images=3, most_bytes=10), httpx.MockTransport(answer)
    images = [b"x" * num_bytes for num_bytes in (20, 6, 4, 4, 20, 1, 1, 1, 1)]

    with DetrClient("http://test", batching=batching, transport=transport) as client:
        results = client.detect_many(images)

    assert nums_images == [1, 2, 1, 1, 3, 1]
    assert len(results) == len(images)


def test_the_client_waits_longer_than_the_service_may_take() -> None:
    service = Service(done())

    service.client().detect(b"x")

    timeouts = service.requests[0].extensions["timeout"]
    assert timeouts["read"] > Settings().deadline_s


@pytest.mark.anyio
async def test_a_mistyped_argument_is_reported_before_anything_is_sent() -> None:
    service = Service(done())
    transport = httpx.MockTransport(service)

    with pytest.raises(TypeError, match="'treshold'; expected threshold"):
        service.client().detect(b"x", treshold=0.5)  # type: ignore[call-arg]
    async with AsyncDetrClient("http://test", transport=transport) as client:
        with pytest.raises(TypeError, match="'treshold'; expected threshold"):
            await client.detect_many([b"x"], treshold=0.5)  # type: ignore[call-arg]

    assert service.requests == []
