"""Limits of connections, headers and slow clients: a real server, and clients that abuse it."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.service.attacks import (
    Answer,
    Target,
    flood,
    many,
    read_all,
    read_answer,
    split_answers,
    trickle,
)  # fmt: skip

POST = b"POST /detect HTTP/1.1\r\nHost: a\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def target(start: Callable[..., Any]) -> Target:
    return Target(
        start(
            max_connections=30,
            header_timeout_s=1,
            body_timeout_s=1,
            write_timeout_s=1,
            keep_alive_timeout_s=1,
            log_level="debug",
        )
    )


def ask(target: Target, data: bytes) -> list[Answer]:
    """Every answer to what is sent on one connection, until it is closed."""
    with target.connect() as client:
        client.sendall(data)
        return split_answers(read_all(client))


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: ", b"x" * 1000),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"A: %s\r\n" % (b"x" * 100)),
        (b"GET /", b"x" * 1000),
        (CHUNKED + b"0\r\n", b"A: %s\r\n" % (b"x" * 100)),
        (CHUNKED + b"0\r\nA: ", b"x" * 1000),
        (CHUNKED + b"1;a=", b"x" * 1000),
    ],
    ids=["a header", "headers", "a path", "trailers", "a trailer", "a chunk's extension"],
)
def test_endless_headers_are_cut(target: Target, begin: bytes, more: bytes) -> None:
    with target.connect() as client:
        num_sent_mb = flood(client, begin, more, most_mb=200)
        answer = read_answer(client)

    assert (answer.status, answer.code) == (431, "headers_too_large")
    assert "x-request-id: " in answer.headers.lower()
    assert num_sent_mb < 50
    assert target.growth_mb() < 50


def test_headers_within_the_limit_are_read(target: Target) -> None:
    answer = httpx.get(f"{target.address}/healthz", headers={"A": "x" * 15_000})

    assert answer.status_code == 200


@pytest.mark.parametrize("path", [b"/healthz", b"/openapi.json"])
def test_pipelined_requests_whose_answers_are_not_read_are_not_read_either(
    target: Target, path: bytes
) -> None:
    with target.connect() as client:
        num_sent_mb = flood(
            client, b"", b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path * 1000, most_mb=200
        )
        status = httpx.get(f"{target.address}/healthz", timeout=20).status_code

    assert status == 200
    assert num_sent_mb < 50
    assert "Traceback" not in "".join(target.process.log)
    assert target.growth_mb() < 50


def test_pipelined_requests_are_answered_in_their_order(target: Target) -> None:
    requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % index for index in range(300)]
    last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    with target.connect() as client:
        client.sendall(b"".join([*requests, last]))
        answers = read_all(client)

    assert re.findall(rb"GET /(\d+):", answers) == [b"%d" % index for index in range(300)]
    assert answers.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"A: b\r\n"),
        (POST + b"Content-Length: 100\r\n\r\n", b"x"),
        (POST + FORM + b"Content-Length: 100\r\n\r\n--b\r\nA: ", b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
    ],
    ids=["headers", "a body", "a form", "chunks"],
)
def test_what_comes_too_slowly_is_cut(target: Target, begin: bytes, more: bytes) -> None:
    with target.connect() as client:
        trickle(client, begin, more, every_s=0.3)
        answer = read_answer(client)

    assert (answer.status, answer.code) == (408, "request_timeout")


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "a request", "a request without its body"],
)
def test_a_connection_on_which_nothing_happens_is_closed(target: Target, begin: bytes) -> None:
    with target.connect() as client:
        client.sendall(begin)

        answers = read_all(client)

    assert answers.count(b"HTTP/1.1 200") == bool(begin)


def test_idle_connections_beyond_the_limit_make_room_and_are_told_of(target: Target) -> None:
    with many(target, 60):
        others = [httpx.get(f"{target.address}/healthz").status_code for _ in range(3)]

    assert others == [200, 200, 200]
    assert any(
        "the limit of open connections, 30, is reached" in line for line in target.process.log
    )


def test_a_client_is_refused_where_every_connection_has_a_request(target: Target) -> None:
    with many(target, 30) as clients:
        for client in clients:
            client.sendall(POST + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
        for client in clients:
            client.recv(100)  # that the service waits for the body
        with target.connect() as client:
            answer = read_answer(client)

    assert (answer.status, answer.code) == (503, "too_many_connections")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\1\2\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA b\r\n\r\n",
        CHUNKED + b"x\r\n",
    ],
)
def test_what_is_not_http_is_answered_in_json_and_counted(
    target: Target, request_bytes: bytes
) -> None:
    counter = 'detr_rejects_total{code="malformed_request"}'
    before = target.metric(counter)

    with target.connect() as client:
        client.sendall(request_bytes)
        answer = read_answer(client)

    assert (answer.status, answer.code) == (400, "malformed_request")
    assert "x-request-id: " in answer.headers.lower()
    assert target.metric(counter) == before + 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"CONNECT a:443 HTTP/1.1", "got CONNECT a:443;"),
        (b"CONNECT /detect HTTP/1.1", "got CONNECT /detect;"),
        (b"GET http://a HTTP/1.1", "got GET http://a;"),
        (b"GET http://[::1 HTTP/1.1", "got GET http://[::1;"),
        (b"GET http://a:99999999/healthz HTTP/1.1", "99999999"),
        (b"GET http:///healthz HTTP/1.1", "got GET http:///healthz;"),
        (b"GET ftp://a/healthz HTTP/1.1", "got GET ftp://a/healthz;"),
        (b"DESCRIBE rtsp://a RTSP/1.0", "got DESCRIBE rtsp://a;"),
        (b"OPTIONS * HTTP/1.1", "got OPTIONS *;"),
        (b"GET http://%s HTTP/1.1" % (b"a" * 1000), "aaa...;"),
        (b"GET healthz HTTP/1.1", "url"),
        (b"GET /\x01 HTTP/1.1", "url"),
        (b"GET /healthz?\xff HTTP/1.1", "url"),
        (b"GET /health z HTTP/1.1", "Expected HTTP/"),
        (b"GET /healthz", "got HTTP/0.9"),
        (b"GET /healthz HTTP/2.0", "got HTTP/2.0"),
        (b"PRI * HTTP/2.0", "HTTP/2"),
        (b"FETCH /healthz HTTP/1.1", "Invalid method"),
    ],
)
def test_what_is_wrong_with_the_first_line_is_said(target: Target, line: bytes, found: str) -> None:
    answers = ask(target, line + b"\r\nHost: a\r\n\r\n" + HEALTHZ)

    assert [(one.status, one.code) for one in answers] == [(400, "malformed_request")]
    assert found in answers[0].message


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5, 5",
        b"Content-Length: -5",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding:\r\n chunked",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\nContent-Length: 5",
        b"A: b\nTransfer-Encoding: chunked",
        b"A b: c",
        b"A: \0",
    ],
)
def test_where_a_body_ends_is_never_guessed(target: Target, framing: bytes) -> None:
    answers = ask(target, POST + framing + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + HEALTHZ)

    assert [(one.status, one.code) for one in answers] == [(400, "malformed_request")]


@pytest.mark.parametrize(
    "chunk", [b"-5", b"+5", b"0x5", b"5 ", b" 5", b"5\n", b"5;a\n", b"fffffffffffffffff"]
)
def test_the_size_of_a_chunk_is_never_guessed(target: Target, chunk: bytes) -> None:
    answers = ask(target, CHUNKED + chunk + b"\r\nhello\r\n0\r\n\r\n" + HEALTHZ)

    assert [(one.status, one.code) for one in answers] == [(400, "malformed_request")]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_the_body_of_a_request_for_another_protocol_is_its_body(
    target: Target, png_bytes: bytes, protocol: bytes, is_chunked: bool
) -> None:
    upgrade = POST + b"Connection: Upgrade\r\nUpgrade: %s\r\n" % protocol
    framed = CHUNKED.removeprefix(POST) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(png_bytes), png_bytes)
    plain = b"Content-Length: %d\r\n\r\n%s" % (len(png_bytes), png_bytes)

    answers = ask(target, upgrade + (framed if is_chunked else plain) + HEALTHZ)

    assert [one.status for one in answers] == [200, 200]
    assert answers[0].body.startswith('{"results":[{')
    assert answers[1].body == '{"status":"ok"}'


@pytest.mark.parametrize("path", [b"/healthz", b"/nothing"])
def test_a_request_is_not_smuggled_in_a_body(target: Target, path: bytes) -> None:
    head = b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" % path
    hidden = b"GET /model HTTP/1.1\r\nHost: a\r\n\r\n" * 100

    answers = ask(target, head + b"Content-Length: %d\r\n\r\n%s" % (len(hidden), hidden) + HEALTHZ)

    assert len(answers) == 2
    assert answers[1].body == '{"status":"ok"}'


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 50", 404),
        (b"POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", 404),
        (b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999", 413),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 50", 200),
    ],
)
def test_a_body_that_was_announced_and_not_asked_for_ends_the_connection(
    target: Target, begin: bytes, status: int
) -> None:
    answers = ask(target, begin + b"\r\nExpect: 100-continue\r\n\r\n" + HEALTHZ)

    assert [one.status for one in answers] == [status]
    assert "connection: close" in answers[0].headers.lower()


@pytest.mark.parametrize("path", [b"/healthz", b"/healthz/", b"/docs"])
@pytest.mark.parametrize(
    "host", [b"", b"xn--", b"xn--a-ecp.ru", b"[::1", b"\xff", b"a:99999999", b"user@b/../c", b"%00"]
)
def test_a_host_of_any_kind_is_no_error_of_the_service(
    target: Target, path: bytes, host: bytes
) -> None:
    with target.connect() as client:
        client.sendall(b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path, host))
        answer = read_answer(client)

    assert answer.status in (200, 307)
    assert "Traceback" not in "".join(target.process.log)


@pytest.mark.parametrize(
    ("headers", "found"), [(b"", "got none"), (b"Host: a\r\nhost: b\r\n", "got several")]
)
def test_a_request_without_its_one_host_is_refused_and_counted(
    target: Target, headers: bytes, found: str
) -> None:
    counter = 'detr_requests_total{path="/healthz",status="400"}'
    before = target.metric(counter)

    answers = ask(target, b"GET /healthz HTTP/1.1\r\n%s\r\n" % headers + HEALTHZ)

    assert [(one.status, one.code) for one in answers] == [(400, "malformed_request")]
    assert answers[0].message.startswith("expected one Host header")
    assert found in answers[0].message
    assert target.metric(counter) == before + 1


def test_a_health_check_in_http_1_0_needs_no_host(target: Target) -> None:
    answers = ask(target, b"GET /healthz HTTP/1.0\r\n\r\n")

    assert [(one.status, one.body) for one in answers] == [(200, '{"status":"ok"}')]


def test_what_follows_a_good_request_does_not_spoil_its_answer(target: Target) -> None:
    with target.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" + b"\0" * 100)

        answers = read_all(client)

    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "content_type", [b"image/png", b"multipart/form-data; boundary=b"], ids=["raw", "form"]
)
def test_a_client_that_aborts_its_upload_is_not_an_error_of_the_service(
    target: Target, content_type: bytes
) -> None:
    counter = 'detr_requests_total{path="/detect",status="499"}'
    before = target.metric(counter)

    with target.connect() as client:
        client.sendall(POST + b"Content-Type: %s\r\nContent-Length: 100\r\n\r\n--b" % content_type)

    assert target.wait_until(lambda: target.metric(counter) == before + 1)
    assert "Traceback" not in "".join(target.process.log)
