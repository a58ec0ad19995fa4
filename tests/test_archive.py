"""The archive asked over real sockets: what comes back, what fails, and what is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from cartd.archive import Archive, ArchiveError, FileState
from cartd.archive.client import archive_client
from cartd.errors import ConfigError
from tests.archive_asking import HEAD_TIMEOUT, STALL_TIMEOUT, Asking, Sink, asking, begun, reactor
from tests.archive_faults import (
    Close,
    Drip,
    Endless,
    Fault,
    Hang,
    Send,
    chunked,
    close_before_head,
    drip,
    endless,
    garbage,
    gzipped,
    hang_after,
    hang_before_head,
    head,
    no_length,
    redirect,
    reset_after,
    reset_before_head,
    state,
    status,
    steps,
    truncated,
    wrong_bytes,
)
from tests.faulty_archive import FaultyArchive
from tests.real_archive import real_archive

DATA = bytes(range(256)) * 40


@pytest_twisted.async_yield_fixture
async def asked() -> AsyncIterator[Asking]:
    async with asking() as asked:
        asked.faulty.put("7", DATA)
        yield asked


async def failure_of(awaited: Any) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        await awaited
    return caught.value


# What works


@pytest_twisted.ensureDeferred
async def test_the_state_of_a_file_is_its_size_time_and_place(asked: Asking) -> None:
    assert await asked.archive.status("7") == FileState(len(DATA), 1700000000, True)


@pytest_twisted.ensureDeferred
async def test_a_file_on_tape_is_staged_and_then_on_disk(asked: Asking) -> None:
    asked.faulty.put("t", b"x", tape_heads=1)
    assert not (await asked.archive.status("t")).on_disk
    await asked.archive.stage("t")
    assert not (await asked.archive.status("t")).on_disk
    assert (await asked.archive.status("t")).on_disk


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, id="at-once"),
        pytest.param(chunked(), id="chunked"),
        pytest.param(drip(1000), id="in-pieces"),
        pytest.param(no_length(), id="until-the-connection-ends"),
        pytest.param(steps(Send(b"HTTP/1.0 200 OK\r\n\r\n" + DATA), Close()), id="http-1.0"),
        pytest.param(
            steps(Send(b"HTTP/1.1 100 Continue\r\n\r\n"), Send(head(200) + DATA), Close()),
            id="after-100",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_file_come_as_they_are(asked: Asking, fault: Fault | None) -> None:
    if fault is not None:
        asked.faulty.fault("7", fault)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_a_large_file_and_an_empty_one_come_whole(asked: Asking) -> None:
    large = bytes(7_000_001)
    asked.faulty.put("large", large)
    asked.faulty.put("empty", b"")
    assert await asked.fetch("large") == large
    assert await asked.fetch("empty") == b""


@pytest_twisted.ensureDeferred
async def test_requests_one_after_the_other_share_a_connection(asked: Asking) -> None:
    for _ in range(3):
        await asked.archive.status("7")
        await asked.archive.stage("7")
        assert await asked.fetch("7") == DATA
        await failure_of(asked.archive.stage("unknown"))
    assert asked.faulty.total_connections == 1


@pytest_twisted.ensureDeferred
async def test_bytes_are_asked_for_as_they_are_stored_and_no_cookie_is_kept(asked: Asking) -> None:
    asked.faulty.fault("7", status(200, [("Set-Cookie", "a=b")]))
    await asked.fetch("7")
    await asked.fetch("7")
    for request in asked.faulty.requests:
        assert request.header("Accept-Encoding") == ["identity"]
        assert request.header("Cookie") == []
        assert request.header("User-Agent")[0].startswith("cartd/")


# How ids reach the wire

HOSTILE = [
    pytest.param("12", "12", id="number"),
    pytest.param(".", "%2E", id="dot"),
    pytest.param("..", "%2E%2E", id="dot-dot"),
    pytest.param("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", id="climbing"),
    pytest.param("a/../b", "a%2F..%2Fb", id="dot-dot-within"),
    pytest.param("//evil.example/x", "%2F%2Fevil.example%2Fx", id="host"),
    pytest.param("http://evil.example/", "http%3A%2F%2Fevil.example%2F", id="url"),
    pytest.param("@evil.example", "%40evil.example", id="user"),
    pytest.param("?x=1&y", "%3Fx%3D1%26y", id="query"),
    pytest.param("#x", "%23x", id="fragment"),
    pytest.param(";x", "%3Bx", id="parameter"),
    pytest.param("%2e%2e", "%252e%252e", id="encoded-already"),
    pytest.param("%", "%25", id="bare-percent"),
    pytest.param("a b+c", "a%20b%2Bc", id="space-and-plus"),
    pytest.param("\\..\\x", "%5C..%5Cx", id="backslash"),
    pytest.param("x\r\nHost: evil", "x%0D%0AHost%3A%20evil", id="newline"),
    pytest.param("\0", "%00", id="nul"),
    pytest.param("e\u0301\u00e9", "e%CC%81%C3%A9", id="unicode-not-normalised"),
    pytest.param("\U0001f600", "%F0%9F%98%80", id="outside-the-basic-plane"),
]


@pytest.mark.parametrize("base", ["", "/archive", "/a%20b/c"])
@pytest.mark.parametrize(("archive_id", "segment"), HOSTILE)
@pytest_twisted.ensureDeferred
async def test_an_id_is_one_segment_below_the_archives_own_path(
    base: str, archive_id: str, segment: str
) -> None:
    async with asking(base=base) as asked:
        asked.faulty.put(archive_id, DATA)
        await asked.archive.status(archive_id)
        await asked.archive.stage(archive_id)
        assert await asked.fetch(archive_id) == DATA
        assert [request.target for request in asked.faulty.requests] == [f"{base}/{segment}"] * 3
        hosts = {tuple(request.header("Host")) for request in asked.faulty.requests}
        assert hosts == {(f"127.0.0.1:{asked.faulty.port}",)}


@pytest.mark.parametrize("archive_id", ["", "\ud800"], ids=["empty", "lone-surrogate"])
@pytest_twisted.ensureDeferred
async def test_an_id_that_no_url_can_hold_is_not_asked_for(asked: Asking, archive_id: str) -> None:
    error = await failure_of(asked.archive.status(archive_id))
    assert not error.retryable
    assert asked.faulty.requests == []


@pytest.mark.parametrize(
    "url",
    ["", "ftp://h/", "h:8080", "http://", "http://u:secret@h/", "http://h/?x", "http://h/#x",
     "http://h:port/"],
)  # fmt: skip
def test_a_url_that_is_no_place_of_an_archive_is_refused(url: str) -> None:
    client, _ = archive_client(reactor, connections=1, connect_timeout=1, ca_file=None)
    with pytest.raises(ConfigError) as caught:
        Archive(client, url, reactor, head_timeout=1, stall_timeout=1)
    assert "secret" not in str(caught.value)


# What fails, and how

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
    pytest.param("GET", status(204), "answered 204 to GET where 200 was due", True, id="204"),
    pytest.param("GET", status(206, body=b"xy"), "answered 206 to GET", True, id="206"),
    pytest.param("GET", gzipped(), "sent the file encoded, unasked: gzip", False, id="gzip"),
]

BROKEN = "broke the connection "
CONNECTION_FAULTS = [
    pytest.param("POST", close_before_head(), BROKEN + "before it answered", id="closed"),
    pytest.param("HEAD", reset_before_head(), BROKEN + "before it answered", id="reset"),
    pytest.param("GET", truncated(0), BROKEN + "in the middle of its answer", id="no-body"),
    pytest.param("GET", truncated(10239), BROKEN + "in the middle of its answer", id="truncated"),
    pytest.param("GET", reset_after(5), BROKEN + "in the middle of its answer", id="reset-within"),
    pytest.param("GET", chunked(cut=True), BROKEN + "in the middle", id="last-chunk-lacks"),
    pytest.param("HEAD", garbage(), "answer is not HTTP", id="garbage"),
    pytest.param("GET", garbage(b"\0" * 40_000), BROKEN + "before", id="garbage-without-lines"),
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


async def ask(asked: Asking, method: str) -> object:
    if method == "HEAD":
        return await asked.archive.status("7")
    if method == "POST":
        await asked.archive.stage("7")
        return None
    return await asked.fetch("7")


@pytest.mark.parametrize(("method", "fault", "message", "retryable"), HTTP_FAULTS)
@pytest_twisted.ensureDeferred
async def test_a_wrong_answer_is_told_and_costs_no_connection(
    asked: Asking, method: str, fault: Fault, message: str, retryable: bool
) -> None:
    asked.faulty.fault("7", fault, method=method)
    error = await failure_of(ask(asked, method))
    assert message in str(error)
    assert error.retryable is retryable
    assert error.retry_after is None
    assert await asked.fetch("7") == DATA
    assert asked.faulty.total_connections == 1


@pytest.mark.parametrize(("method", "fault", "message"), CONNECTION_FAULTS)
@pytest_twisted.ensureDeferred
async def test_a_broken_connection_is_told_and_the_next_request_works(
    asked: Asking, method: str, fault: Fault, message: str
) -> None:
    asked.faulty.fault("7", fault, method=method)
    error = await failure_of(ask(asked, method))
    assert message in str(error)
    assert error.retryable
    assert await asked.fetch("7") == DATA
    await asked.until(lambda: asked.faulty.open_connections == 1)


@pytest_twisted.ensureDeferred
async def test_an_archive_that_is_away_refuses_the_connection() -> None:
    async with asking() as asked:
        await asked.faulty.stop()
        error = await failure_of(asked.archive.status("7"))
        assert str(error) == "the archive refuses the connection"
        assert error.retryable
        asked.faulty.listen()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_dies_at_its_reuse_is_worth_another_try(asked: Asking) -> None:
    await asked.archive.stage("7")
    asked.faulty.fault("7", close_before_head(), method="POST", request=2)
    error = await failure_of(asked.archive.stage("7"))
    assert error.retryable
    await asked.archive.stage("7")
    assert [request.connection for request in asked.faulty.seen("POST")] == [1, 1, 2]


@pytest_twisted.ensureDeferred
async def test_connections_that_the_archive_closed_are_not_used_again(asked: Asking) -> None:
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
async def test_the_wait_that_the_archive_asks_for_is_told(
    asked: Asking, value: str, seconds: float | None
) -> None:
    asked.faulty.fault("7", status(503, [("Retry-After", value)]))
    error = await failure_of(asked.archive.status("7"))
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("body", "told"),
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
async def test_the_archives_own_words_are_told_cleaned_and_cut(
    asked: Asking, body: bytes, told: str
) -> None:
    asked.faulty.fault("7", status(404, body=body))
    error = await failure_of(asked.archive.stage("7"))
    assert str(error) == "the archive answered 404 Not Found to POST" + told
    assert asked.faulty.total_connections == 1


@pytest.mark.parametrize("rest", [Endless(b"4\r\nword\r\n"), Hang()], ids=["endless", "silent"])
@pytest_twisted.ensureDeferred
async def test_the_body_of_an_error_is_not_read_for_ever(asked: Asking, rest: Any) -> None:
    start = Send(head(500, [("Transfer-Encoding", "chunked")]) + b"4\r\nword\r\n")
    asked.faulty.fault("7", steps(start, rest))
    failing = begun(failure_of(asked.fetch("7")))
    await asked.until(lambda: asked.faulty.running == 1)
    if isinstance(rest, Hang):
        # The head may still be on its way: only then is it the head's time that runs out.
        await drained(asked)
        asked.clock.advance(HEAD_TIMEOUT)
    error = await failing
    assert "500 Internal Server Error" in str(error)
    drained_over = 1 if isinstance(rest, Hang) else 0
    await asked.until(lambda: asked.faulty.open_connections == drained_over)


async def drained(asked: Asking) -> None:
    """Wait until another request has been answered, sent after all that was sent before."""
    for _ in range(3):
        await asked.archive.status("7")


# Headers of a HEAD


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"last_modified": "12.999"}, FileState(10240, 12, True), id="fraction"),
        pytest.param({"last_modified": "12"}, FileState(10240, 12, True), id="whole"),
        pytest.param({"last_modified": "-0.5"}, FileState(10240, 0, True), id="before-1970"),
        pytest.param(
            {"last_modified": "Sun, 06 Nov 1994 08:49:37 GMT"},
            FileState(10240, 784111777, True),
            id="http-date",
        ),
        pytest.param(
            {"last_modified": "Sunday, 06-Nov-94 08:49:37 GMT"},
            FileState(10240, 784111777, True),
            id="rfc-850-date",
        ),
        pytest.param(
            {"last_modified": "Sun Nov  6 08:49:37 1994"},
            FileState(10240, 784111777, True),
            id="asctime-date",
        ),
        pytest.param(
            {"x_content_length": "0"}, FileState(0, 1700000000, True), id="no-bytes"
        ),
        pytest.param(
            {"x_pacifica_file_storage_media": "Disk"}, FileState(10240, 1700000000, True), id="Disk"
        ),
        pytest.param(
            {"x_pacifica_file_storage_media": "t"}, FileState(10240, 1700000000, False), id="tape"
        ),
        pytest.param(
            {"x_pacifica_file_storage_media": None},
            FileState(10240, 1700000000, False),
            id="media-unsaid",
        ),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_the_headers_of_a_state_are_read(
    asked: Asking, changed: dict[str, str | None], expected: FileState
) -> None:
    asked.faulty.fault("7", state(**changed))
    assert await asked.archive.status("7") == expected


@pytest.mark.parametrize(
    ("changed", "message", "retryable"),
    [
        pytest.param({"x_content_length": None}, "has no X-Content-Length", True, id="no-length"),
        pytest.param({"x_content_length": "-1"}, "X-Content-Length header makes", True, id="minus"),
        pytest.param({"x_content_length": "1e3"}, "makes no sense: 1e3", True, id="exponent"),
        pytest.param({"x_content_length": "\u00b2"}, "makes no sense", True, id="superscript"),
        pytest.param({"x_content_length": "File Not Found"}, "no sense: File", True, id="words"),
        pytest.param({"x_content_length": "9" * 20}, "Length header is", False, id="huge"),
        pytest.param({"x_content_length": "9" * 5000}, "makes no sense", True, id="long"),
        pytest.param({"last_modified": None}, "has no Last-Modified", True, id="no-time"),
        pytest.param({"last_modified": "soon"}, "Last-Modified header makes", True, id="soon"),
        pytest.param({"last_modified": "nan"}, "Last-Modified header makes", True, id="nan"),
        pytest.param({"last_modified": "1" * 14}, "Last-Modified header is", False, id="far-off"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_a_header_that_cannot_be_read_is_named(
    asked: Asking, changed: dict[str, str | None], message: str, retryable: bool
) -> None:
    asked.faulty.fault("7", state(**changed))
    error = await failure_of(asked.archive.status("7"))
    assert message in str(error)
    assert error.retryable is retryable
    assert len(str(error)) < 200


# Redirects


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest_twisted.ensureDeferred
async def test_a_redirect_within_the_same_server_is_followed(
    asked: Asking, method: str, code: int
) -> None:
    asked.faulty.fault("moved", redirect("/7", code))
    asked.faulty.put("moved", b"never seen")
    if method == "HEAD":
        assert (await asked.archive.status("moved")).size == len(DATA)
    else:
        assert await asked.fetch("moved") == DATA
    assert [(r.method, r.target) for r in asked.faulty.requests][1:] == [(method, "/7")]
    assert asked.faulty.total_connections == 1


@pytest_twisted.ensureDeferred
async def test_a_redirected_post_is_posted_again_but_never_turned_into_a_get(
    asked: Asking,
) -> None:
    asked.faulty.fault("moved", redirect("/7", 307))
    await asked.archive.stage("moved")
    assert len(asked.faulty.seen("POST", "7")) == 1
    asked.faulty.fault("gone", redirect("/7", 303))
    error = await failure_of(asked.archive.stage("gone"))
    assert "303 See Other to POST" in str(error)
    assert asked.faulty.seen("GET") == []


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://127.0.0.2:{port}/7", "redirects to another server"),
        ("//127.0.0.1:1/7", "redirects to another server"),
        ("https://127.0.0.1:{port}/7", "redirects to another server"),
        ("http://u@127.0.0.1:{port}/7", "redirects to another server"),
        ("file:///etc/passwd", "redirects to another server"),
        ("http://[oops/", "redirects to what is no URL"),
        ("", "redirects to nowhere"),
        ("/moved", "redirects without end"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_redirect_elsewhere_is_refused(asked: Asking, location: str, message: str) -> None:
    location = location.format(port=asked.faulty.port)
    asked.faulty.fault("moved", redirect(location), times=None)
    error = await failure_of(asked.archive.status("moved"))
    assert message in str(error)
    assert len(asked.faulty.requests) <= 6
    assert await asked.fetch("7") == DATA


# Time, pauses, ends


@pytest_twisted.ensureDeferred
async def test_an_answer_that_does_not_begin_is_given_up(asked: Asking) -> None:
    asked.faulty.fault("7", hang_before_head())
    failing = begun(failure_of(asked.archive.status("7")))
    await asked.until(lambda: asked.faulty.running == 1)
    asked.clock.advance(HEAD_TIMEOUT - 1)
    assert not failing.called
    asked.clock.advance(1)
    error = await failing
    assert str(error) == "the archive did not answer within 60 seconds"
    assert error.retryable
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_a_body_that_falls_silent_is_given_up(asked: Asking) -> None:
    asked.faulty.fault("7", hang_after(100))
    sink = Sink()
    failing = begun(failure_of(asked.archive.fetch("7", sink)))
    await sink.first
    asked.clock.advance(STALL_TIMEOUT - 1)
    assert not failing.called
    asked.clock.advance(1)
    error = await failing
    assert str(error) == "the archive sent nothing for 30 seconds"
    assert error.retryable
    assert sink.producer is None
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_every_byte_begins_the_silence_anew(asked: Asking) -> None:
    asked.faulty.put("slow", b"ten  bytes")
    asked.faulty.fault("slow", drip(1))
    sink = Sink(lambda sink: asked.clock.advance(STALL_TIMEOUT - 1))
    await asked.archive.fetch("slow", sink)
    assert sink.data == b"ten  bytes"


@pytest_twisted.ensureDeferred
async def test_a_sink_that_pauses_stops_the_archive_and_no_time_runs(asked: Asking) -> None:
    def pause(sink: Sink) -> None:
        if not sink.first.called:
            assert sink.producer is not None
            sink.producer.pauseProducing()

    size = 16_000_000
    start = Send(head(200, [("Content-Length", str(size))]))
    asked.faulty.fault("7", steps(start, Drip(bytes(size), piece=1_000_000)))
    sink = Sink(pause)
    fetching = begun(asked.archive.fetch("7", sink))
    await sink.first
    seen = len(sink.data)
    await drained(asked)
    asked.clock.advance(10 * STALL_TIMEOUT)
    assert not fetching.called
    assert len(sink.data) - seen <= 65_536
    sink.data = bytearray()
    assert sink.producer is not None
    sink.producer.resumeProducing()
    await fetching
    assert len(sink.data) == size - seen


@pytest_twisted.ensureDeferred
async def test_a_sink_that_is_not_ready_yet_may_pause_from_the_start(asked: Asking) -> None:
    class Unready(Sink):
        def registerProducer(self, producer: Any, streaming: bool) -> None:
            super().registerProducer(producer, streaming)
            producer.pauseProducing()

    data = bytes(1_000_000)
    asked.faulty.put("7", data)
    sink = Unready()
    fetching = begun(asked.archive.fetch("7", sink))
    await asked.until(lambda: asked.faulty.running == 1)
    await drained(asked)
    asked.clock.advance(STALL_TIMEOUT)
    assert len(sink.data) <= 65_536
    assert sink.producer is not None
    sink.producer.resumeProducing()
    await fetching
    assert sink.data == data


@pytest_twisted.ensureDeferred
async def test_silence_after_a_pause_is_counted_again(asked: Asking) -> None:
    asked.faulty.fault("7", hang_after(100))
    sink = Sink(lambda sink: sink.producer.pauseProducing())  # type: ignore[union-attr]
    failing = begun(failure_of(asked.archive.fetch("7", sink)))
    await sink.first
    asked.clock.advance(10 * STALL_TIMEOUT)
    assert not failing.called
    assert sink.producer is not None
    sink.producer.resumeProducing()
    asked.clock.advance(STALL_TIMEOUT)
    assert "sent nothing" in str(await failing)


@pytest.mark.parametrize(
    "fault", [hang_after(100), endless(), drip(100), None], ids=["silent", "endless", "drip", "all"]
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_what_the_sink_raises_comes_out_and_ends_the_transfer(
    asked: Asking, fault: Fault | None
) -> None:
    class TooManyError(Exception):
        pass

    def refuse(sink: Sink) -> None:
        raise TooManyError

    if fault is not None:
        asked.faulty.fault("7", fault)
    sink = Sink(refuse)
    with pytest.raises(TooManyError):
        await asked.archive.fetch("7", sink)
    assert sink.producer is None
    assert 0 < len(sink.data) <= 65_536
    if fault is not None:
        await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_cancelling_before_the_connection_stands_leaves_none(asked: Asking) -> None:
    fetching = begun(asked.archive.fetch("7", Sink()))
    fetching.cancel()
    with pytest.raises(CancelledError):
        await fetching
    await asked.until(lambda: asked.faulty.open_connections == 0)


@pytest.mark.parametrize("method", ["HEAD", "POST", "GET"])
@pytest_twisted.ensureDeferred
async def test_cancelling_before_the_answer_closes_the_connection(
    asked: Asking, method: str
) -> None:
    asked.faulty.fault("7", hang_before_head(), method=method)
    asking_now = begun(ask(asked, method))
    await asked.until(lambda: asked.faulty.running == 1)
    asking_now.cancel()
    with pytest.raises(CancelledError):
        await asking_now
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest.mark.parametrize("paused", [False, True], ids=["flowing", "paused"])
@pytest.mark.parametrize("fault", [hang_after(100), endless()], ids=["silent", "endless"])
@pytest_twisted.ensureDeferred
async def test_cancelling_within_the_body_closes_the_connection(
    asked: Asking, fault: Fault, paused: bool
) -> None:
    def on_write(sink: Sink) -> None:
        assert sink.producer is not None
        if paused:
            sink.producer.pauseProducing()

    asked.faulty.fault("7", fault)
    sink = Sink(on_write)
    fetching = begun(asked.archive.fetch("7", sink))
    await sink.first
    fetching.cancel()
    with pytest.raises(CancelledError):
        await fetching
    assert sink.producer is None
    await asked.until(lambda: asked.faulty.open_connections == 0)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_cancelling_from_within_a_write_does_not_pool_the_connection(asked: Asking) -> None:
    asked.faulty.fault("7", steps(Send(head(200, [("Content-Length", "2")])), Drip(b"ab", 2)))
    posted: Deferred[None] = Deferred()

    def cancel(sink: Sink) -> None:
        # Comes before the loop learns that the connection is gone.
        reactor.callLater(0, lambda: begun(asked.archive.stage("7")).chainDeferred(posted))
        fetching.cancel()

    fetching = begun(asked.archive.fetch("7", Sink(cancel)))
    with pytest.raises(CancelledError):
        await fetching
    await posted
    assert [request.connection for request in asked.faulty.requests] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_sink_that_stops_the_transfer_ends_it_as_a_cancel_does(asked: Asking) -> None:
    asked.faulty.fault("7", endless())
    sink = Sink(lambda sink: sink.producer.stopProducing())  # type: ignore[union-attr]
    with pytest.raises(CancelledError):
        await asked.archive.fetch("7", sink)
    await asked.until(lambda: asked.faulty.open_connections == 0)


@pytest_twisted.ensureDeferred
async def test_the_sink_is_left_to_judge_the_bytes_themselves(asked: Asking) -> None:
    asked.faulty.fault("7", wrong_bytes())
    asked.faulty.fault("7", no_length(10), request=2)
    assert await asked.fetch("7") == bytes(byte ^ 1 for byte in DATA)
    assert await asked.fetch("7") == DATA[:10]


# Pacifica's own archive interface


@pytest_twisted.ensureDeferred
async def test_pacificas_own_archive_is_understood(tmp_path: Path) -> None:
    with real_archive(tmp_path) as real:
        real.put("104", DATA)
        real.put("empty", b"")
        real.set_mtime("104", 1600000000.75)
        asked = Asking(real.url, FaultyArchive(reactor))
        assert await asked.archive.status("104") == FileState(len(DATA), 1600000000, True)
        await asked.archive.stage("104")
        assert await asked.fetch("104") == DATA
        assert (await asked.archive.status("empty")).size == 0
        assert await asked.fetch("empty") == b""
        for lacking in (asked.archive.status("5"), asked.archive.stage("5"), asked.fetch("5")):
            error = await failure_of(lacking)
            assert error.retryable
            assert str(error).startswith("the archive answered 500 Internal Server Error to ")
        assert await asked.fetch("104") == DATA
        await asked.pool.closeCachedConnections()
