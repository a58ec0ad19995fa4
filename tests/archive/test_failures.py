"""Errors of the archive: their messages, and their connections."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from tests.support.archive_client_fixture import (
    DATA,
    HEAD_TIMEOUT,
    ClientFactory,
    ClientUnderTest,
    Sink,
    asking,
    begun,
    failure_of,
)
from tests.support.archive_faults import (
    Endless,
    Fault,
    Hang,
    Send,
    chunked,
    close_before_head,
    endless,
    garbage,
    gzipped,
    hang_after,
    hang_before_head,
    head,
    honest,
    reset_after,
    reset_before_head,
    status,
    steps,
    truncated,
)

pytest_plugins = ("tests.support.archive_fixtures",)


HTTP_FAULTS = [
    pytest.param("GET", status(404), "404 Not Found to GET", False, id="404"),
    pytest.param("HEAD", status(404), "404 Not Found to HEAD", False, id="404-head"),
    pytest.param("POST", status(410), "410 Gone to POST", False, id="410"),
    pytest.param("GET", status(403), "403 Forbidden", False, id="403"),
    pytest.param("GET", status(408), "408 Request Timeout", True, id="408"),
    pytest.param("POST", status(425), "425 Too Early", True, id="425"),
    pytest.param("HEAD", status(429), "429 Too Many Requests", True, id="429"),
    pytest.param("HEAD", status(500, body=b"x" * 99), "500 Internal Server Error", True, id="500"),
    pytest.param("POST", status(503), "503 Service Unavailable", True, id="503"),
    pytest.param("GET", status(599), "answered 599 to GET", True, id="code-without-a-name"),
    pytest.param("GET", status(304), "304 Not Modified", False, id="304"),
    pytest.param("GET", status(204), "answered 204 to GET instead of 200", True, id="204"),
    pytest.param("GET", status(206, body=b"xy"), "answered 206 to GET", True, id="206"),
    pytest.param(
        "GET",
        gzipped(),
        "sent the file with an unrequested Content-Encoding: gzip",
        False,
        id="gzip",
    ),
]

BROKEN = "closed the connection "
CONNECTION_FAULTS = [
    pytest.param("POST", close_before_head(), BROKEN + "before it responded", id="closed"),
    pytest.param("HEAD", reset_before_head(), BROKEN + "before it responded", id="reset"),
    pytest.param("GET", truncated(0), BROKEN + "in the middle of its response", id="no-body"),
    pytest.param("GET", truncated(10239), BROKEN + "in the middle of its response", id="truncated"),
    pytest.param(
        "GET", reset_after(5), BROKEN + "in the middle of its response", id="reset-within"
    ),
    pytest.param("GET", chunked(cut=True), BROKEN + "in the middle", id="last-chunk-lacks"),
    pytest.param("HEAD", garbage(), "response is not HTTP", id="garbage"),
    # Too long a line for one agent, no line of HTTP for the other.
    pytest.param("GET", garbage(b"\0" * 40_000), "the archive", id="garbage-without-lines"),
    pytest.param("GET", steps(Send(head(200, [("Content-Length", "x")]))), "not HTTP", id="length"),
    pytest.param(
        "GET",
        steps(Send(head(200, [("Content-Length", "1"), ("Content-Length", "2")]) + b"ab")),
        "not HTTP",
        id="two-lengths",
    ),
    pytest.param(
        "GET",
        steps(Send(head(200, [("Transfer-Encoding", "chunked")]) + b"zz\r\nabc\r\n")),
        "not HTTP",
        id="broken-chunk",
    ),
]


@pytest.mark.parametrize(("method", "fault", "message", "retryable"), HTTP_FAULTS)
@pytest_twisted.ensureDeferred
async def test_an_error_response_is_reported_and_keeps_its_connection(
    asked: ClientUnderTest, method: str, fault: Fault, message: str, retryable: bool
) -> None:
    asked.faulty.fault("7", fault, method=method)
    error = await failure_of(asked.ask(method))
    assert message in str(error)
    assert error.retryable is retryable
    assert error.retry_after is None
    assert await asked.fetch("7") == DATA
    assert asked.faulty.total_connections == 1


@pytest.mark.parametrize(("method", "fault", "message"), CONNECTION_FAULTS)
@pytest_twisted.ensureDeferred
async def test_a_broken_connection_is_reported_and_replaced(
    asked: ClientUnderTest, method: str, fault: Fault, message: str
) -> None:
    asked.faulty.fault("7", fault, method=method)
    error = await failure_of(asked.ask(method))
    assert message in str(error)
    assert error.retryable
    assert await asked.fetch("7") == DATA
    await asked.until(lambda: asked.faulty.open_connections == 1)


@pytest_twisted.ensureDeferred
async def test_an_unavailable_archive_refuses_the_connection(
    make_client: ClientFactory,
) -> None:
    async with asking(make_client) as asked:
        await asked.faulty.stop()
        error = await failure_of(asked.archive.status("7"))
        assert str(error) == "the archive refuses the connection"
        assert error.retryable
        assert error.outage
        asked.faulty.listen()


@pytest_twisted.ensureDeferred
async def test_a_connection_closed_at_its_reuse_is_retryable(asked: ClientUnderTest) -> None:
    await asked.archive.stage("7")
    asked.faulty.fault("7", close_before_head(), method="POST", request=2)
    error = await failure_of(asked.archive.stage("7"))
    assert error.retryable
    await asked.archive.stage("7")
    assert [request.connection for request in asked.faulty.seen("POST")] == [1, 1, 2]


@pytest.mark.parametrize(
    ("fault", "when"),
    [(hang_before_head(), "before it responded"), (hang_after(5), "in the middle of its response")],
    ids=["before-head", "within-body"],
)
@pytest_twisted.ensureDeferred
async def test_a_reset_connection_is_reported_like_a_closed_one(
    asked: ClientUnderTest, fault: Fault, when: str
) -> None:
    asked.faulty.fault("7", fault)
    sink = Sink()
    failing = begun(failure_of(asked.archive.fetch("7", sink)))
    await asked.until(lambda: asked.faulty.running == 1)
    if when.startswith("in"):
        await sink.first
    asked.faulty.drop_connections()
    error = await failing
    assert str(error) == f"the archive closed the connection {when}"
    assert error.retryable


@pytest_twisted.ensureDeferred
async def test_connections_that_the_archive_closed_are_not_used_again(
    asked: ClientUnderTest,
) -> None:
    await asked.archive.stage("7")
    asked.faulty.drop_connections()
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 100.0),
        ("99999999", 86400.0),
        ("-5", None),
        ("soon", None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_retry_after_is_reported(
    asked: ClientUnderTest, value: str, seconds: float | None
) -> None:
    asked.faulty.fault("7", status(503, [("Retry-After", value)]))
    error = await failure_of(asked.archive.status("7"))
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        pytest.param(b'{"message": "no\\u0007such\\n file\\u202e"}', ": no such file", id="clean"),
        pytest.param(b'{"message": "%b"}' % (b"y" * 500), ": " + "y" * 200, id="cut"),
        pytest.param(b'{"message": 5}', "", id="no-text"),
        pytest.param(b'["message"]', "", id="no-object"),
        pytest.param(b"[" * 9000, "", id="nested-too-deep"),
        pytest.param(b"<html>\xff", "", id="no-json"),
        pytest.param(b"", "", id="empty"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_the_message_of_the_archive_is_cleaned_and_cut(
    asked: ClientUnderTest, body: bytes, reported: str
) -> None:
    asked.faulty.fault("7", status(404, body=body))
    error = await failure_of(asked.archive.stage("7"))
    assert str(error) == "the archive answered 404 Not Found to POST" + reported
    assert asked.faulty.total_connections == 1


@pytest.mark.parametrize("rest", [Endless(b"4\r\nword\r\n"), Hang()], ids=["endless", "silent"])
@pytest_twisted.ensureDeferred
async def test_the_body_of_an_error_response_is_read_up_to_a_limit(
    asked: ClientUnderTest, rest: Any
) -> None:
    start = Send(head(500, [("Transfer-Encoding", "chunked")]) + b"4\r\nword\r\n")
    asked.faulty.fault("7", steps(start, rest))
    failing = begun(failure_of(asked.fetch("7")))
    await asked.until(lambda: asked.faulty.running == 1)
    if isinstance(rest, Hang):
        # The head may not have come yet: then its timeout applies.
        await asked.settled()
        asked.clock.advance(HEAD_TIMEOUT)
    error = await failing
    assert "500 Internal Server Error" in str(error)
    drained_over = 1 if isinstance(rest, Hang) else 0
    await asked.until(lambda: asked.faulty.open_connections == drained_over)


OF_THE_ARCHIVE = {
    "502": status(502),
    "503": status(503),
    "504": status(504),
    "closed": close_before_head(),
    "reset": reset_before_head(),
    "not HTTP": garbage(),
}
OF_A_FILE = {
    "404": status(404),
    "500": status(500),
    "501": status(501),
    "429": status(429),
    "cut": truncated(5),
    "reset in the middle": reset_after(5),
    "not HTTP in the middle": steps(
        Send(head(200, [("Transfer-Encoding", "chunked")]) + b"zz\r\nabc\r\n")
    ),
}


@pytest.mark.parametrize(
    ("fault", "outage"),
    [
        *(pytest.param(fault, True, id=name) for name, fault in OF_THE_ARCHIVE.items()),
        *(pytest.param(fault, False, id=name) for name, fault in OF_A_FILE.items()),
    ],
)
@pytest_twisted.ensureDeferred
async def test_errors_of_the_whole_archive_are_an_outage(
    asked: ClientUnderTest, fault: Fault, outage: bool
) -> None:
    asked.faulty.fault("7", fault, method="GET")
    assert (await failure_of(asked.fetch("7"))).outage is outage


@pytest.mark.parametrize("named", ["/srv/archive/7", "/srv/a/07/file.7", "7"])
@pytest_twisted.ensureDeferred
async def test_a_500_whose_trace_names_the_file_means_it_is_missing(
    asked: ClientUnderTest, named: str
) -> None:
    asked.faulty.fault("7", status(500, body=trace_of(named)))
    error = await failure_of(asked.archive.stage("7"))
    assert str(error) == (
        "the archive does not have the file"
        " (500 Internal Server Error to POST: no such file or directory)"
    )
    assert (error.missing, error.retryable, error.outage) == (True, False, False)


@pytest.mark.parametrize(
    ("code", "body"),
    [
        pytest.param(500, b"", id="empty"),
        pytest.param(500, b'{"traceback": 5}', id="no text"),
        pytest.param(500, b"No such file or directory: '/a/7'", id="no JSON"),
        pytest.param(500, json.dumps({"traceback": "E: '/a/7'"}).encode(), id="another error"),
        pytest.param(503, json.dumps({"traceback": "E"}).encode(), id="another status"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_500_with_another_trace_does_not_mean_missing(
    asked: ClientUnderTest, code: int, body: bytes
) -> None:
    asked.faulty.fault("7", status(code, body=body))
    error = await failure_of(asked.archive.stage("7"))
    assert (error.missing, error.retryable) == (False, True)


@pytest.mark.parametrize(
    ("named", "after"),
    [("/srv/archive/8", ""), ("/srv/7/", ""), ("/srv/7", "\nRuntimeError: no more threads")],
    ids=["of another file", "of a directory", "of what came before"],
)
@pytest_twisted.ensureDeferred
async def test_a_trace_that_does_not_end_with_the_file_is_ignored(
    asked: ClientUnderTest, named: str, after: str
) -> None:
    asked.faulty.fault("7", status(500, body=trace_of(named, after)))
    assert not (await failure_of(asked.archive.stage("7"))).missing


@pytest_twisted.ensureDeferred
async def test_a_head_without_an_explanation_is_explained_by_a_get(asked: ClientUnderTest) -> None:
    body = trace_of("/srv/archive/7")
    asked.faulty.fault("7", status(500, body=body), times=2)
    error = await failure_of(asked.archive.status("7"))
    assert (error.needs_explanation, error.missing) == (True, False)
    explained = await asked.archive.explain("7", error)
    assert explained.missing
    assert "to GET" in str(explained)
    assert asked.faulty.total_connections == 1


@pytest.mark.parametrize(
    ("fault", "connections"),
    [(honest, 1), (endless(), 2), (status(500), 1), (reset_before_head(), 2)],
    ids=["sent", "endless", "needs_explanation", "reset"],
)
@pytest_twisted.ensureDeferred
async def test_a_get_without_explanation_keeps_the_failure(
    asked: ClientUnderTest, fault: Fault, connections: int
) -> None:
    asked.faulty.fault("7", status(500), method="HEAD")
    error = await failure_of(asked.archive.status("7"))
    asked.faulty.fault("7", fault, method="GET")
    assert await asked.archive.explain("7", error) is error
    await asked.archive.status("7")
    assert asked.faulty.total_connections == connections


def trace_of(named: str, after: str = "") -> bytes:
    """The error body of Pacifica's archive interface for a missing file."""
    trace = (
        "Traceback (most recent call last):\n"
        f"FileNotFoundError: [Errno 2] No such file or directory: '{named}'\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        "pacifica.archiveinterface.exception.ArchiveInterfaceError: Can't open posix file with"
        f" error: [Errno 2] No such file or directory: '{named}'{after}\n"
    )
    body = {"status": "500 Internal Server Error", "message": "unexpected", "traceback": trace}
    return json.dumps(body).encode()
