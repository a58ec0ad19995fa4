"""Responses to the HTTP agent over real sockets, and whether the connection is reused."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionDone
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface.verify import verifyObject

from cartd.archive.http_messages import MAX_BYTES, BadResponse
from tests.support.agent_fixture import AgentClient, Collected, agent_client
from tests.support.archive_faults import Close, Drip, Send, Step, head, steps

OK = b"HTTP/1.1 200 OK\r\n"
OLD = b"HTTP/1.0 200 OK\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FIVE = OK + b"Content-Length: 5\r\n\r\n"

IN_ONE = "in-one"
BY_BYTE = "by-byte"


def sent(wire: bytes, way: str, *then: Step) -> Any:
    return steps(Send(wire) if way == IN_ONE else Drip(wire), *then)


async def next_connection(asking: AgentClient) -> int:
    """Return the number of the connection that another request uses."""
    await asking.collect("HEAD", "next")
    return asking.connections("next")[-1]


@pytest.mark.parametrize("way", [IN_ONE, BY_BYTE])
@pytest.mark.parametrize(
    ("method", "wire", "body", "kept"),
    [
        pytest.param("GET", FIVE + b"abcde", b"abcde", True, id="length"),
        pytest.param("GET", FIVE + b"abcdeX", b"abcde", False, id="length-and-more"),
        pytest.param("GET", FIVE + b"abcde\r\n", b"abcde", False, id="length-and-a-line"),
        pytest.param("GET", FIVE + b"abcde" + FIVE + b"fghij", b"abcde", False, id="two-answers"),
        pytest.param("GET", OK + b"Content-Length: 0\r\n\r\n", b"", True, id="nothing"),
        pytest.param("GET", OK + b"Content-Length: 0\r\n\r\nX", b"", False, id="nothing-and-more"),
        pytest.param("GET", CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc", True, id="chunks"),
        pytest.param("GET", CHUNKED + b"1\r\na\r\n0\r\nT: t\r\n\r\n", b"a", True, id="trailer"),
        pytest.param("GET", CHUNKED + b"1\r\na\r\n0\r\n\r\n\r\n", b"a", False, id="and-a-line"),
        pytest.param("GET", CHUNKED + b"0\r\n\r\n", b"", True, id="no-chunks"),
        pytest.param("GET", b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", b"", True, id="204"),
        pytest.param("GET", b"HTTP/1.1 204 No\r\n\r\nabcde", b"", False, id="204-and-more"),
        pytest.param("GET", b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", b"", True, id="304"),
        pytest.param("HEAD", FIVE, b"", True, id="head"),
        pytest.param("HEAD", FIVE + b"abcde", b"", False, id="head-with-a-body"),
        pytest.param("HEAD", CHUNKED, b"", True, id="head-chunked"),
        pytest.param("HEAD", OK + b"\r\n", b"", True, id="head-of-no-length"),
        pytest.param("HEAD", OK + b"\r\n\r\n", b"", False, id="head-and-a-line"),
        pytest.param("POST", FIVE + b"abcde", b"abcde", True, id="post"),
        pytest.param("GET", OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", b"a", False,
                     id="said-to-close"),
        pytest.param("GET", OLD + b"Content-Length: 1\r\n\r\na", b"a", False, id="1.0"),
        pytest.param("GET", INTERIM + FIVE + b"abcde", b"abcde", True, id="after-interim-answers"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_response_length_decides_about_connection_reuse(
    method: str, wire: bytes, body: bytes, kept: bool, way: str
) -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", sent(wire, way))
        got, end = await asking.collect(method)
        assert got == body
        assert isinstance(end, ResponseDone)
        if not kept and way == BY_BYTE:
            # Extra bytes come after the end: then the idle connection is closed.
            await asking.until(lambda: asking.faulty.open_connections == 0)
        assert await next_connection(asking) == (1 if kept else 2)


@pytest.mark.parametrize("way", [IN_ONE, BY_BYTE])
@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param(OK, PotentialDataLoss, id="closed"),
        pytest.param(OLD, PotentialDataLoss, id="1.0-closed"),
        pytest.param(OK + b"Content-Length: 9\r\n", ResponseFailed, id="too-short"),
        pytest.param(OK + b"Content-Length: 8\r\n", ResponseDone, id="just-whole"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n", ResponseFailed, id="chunks"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_connection_close_ends_a_body_only_without_other_framing(
    fields: bytes, kind: type[Exception], way: str
) -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", sent(fields + b"\r\n3\r\nabc\r\n", way, Close()))
        _, end = await asking.collect("GET")
        assert type(end) is kind
        if isinstance(end, ResponseFailed):
            assert end.reasons[0].check(ConnectionDone)
        assert await next_connection(asking) == 2


@pytest.mark.parametrize("way", [IN_ONE, BY_BYTE])
@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another-protocol"),
        pytest.param(b"HTTP/2 200\r\n", id="another-version"),
        pytest.param(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two-lengths"),
        pytest.param(OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", id="both"),
        pytest.param(b"HTTP/1.1 101 Sw\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="101"),
        pytest.param(OK + b"A: " + b"x" * MAX_BYTES, id="endless-line"),
        pytest.param(OK + b"A: b\r\n" * (MAX_BYTES // 6), id="endless-fields"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_BYTES // 25 + 1), id="interims"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_malformed_response_drops_its_connection(wire: bytes, way: str) -> None:
    async with agent_client() as asking:
        if way == BY_BYTE and len(wire) >= MAX_BYTES:
            asking.faulty.fault("7", steps(Drip(wire, 1000)))
        else:
            asking.faulty.fault("7", sent(wire, way))
        with pytest.raises(ResponseFailed) as caught:
            await asking.ask("GET")
        assert not isinstance(caught.value, ResponseNeverReceived)
        assert caught.value.reasons[0].check(BadResponse)
        await asking.until(lambda: asking.faulty.open_connections == 0)
        assert asking.connections() == [1]


@pytest.mark.parametrize("way", [IN_ONE, BY_BYTE])
@pytest_twisted.ensureDeferred
async def test_malformed_chunks_fail_and_their_connection_is_dropped(way: str) -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", sent(CHUNKED + b"zz\r\n", way))
        _, end = await asking.collect("GET")
        assert isinstance(end, ResponseFailed)
        assert end.reasons[0].check(BadResponse)
        await asking.until(lambda: asking.faulty.open_connections == 0)


@pytest_twisted.ensureDeferred
async def test_a_response_has_the_interface_that_treq_needs() -> None:
    async with agent_client() as asking:
        wire = b"HTTP/1.1 202 Later\r\nX-A: b\r\nContent-Length: 5\r\n\r\nabcde"
        asking.faulty.fault("7", steps(Send(wire)))
        asking.faulty.fault("7", steps(Send(CHUNKED + b"0\r\n\r\n")), request=2)
        response = await asking.ask("GET")
        assert verifyObject(IResponse, response)
        assert (response.code, response.phrase, response.length) == (202, b"Later", 5)
        assert response.version == (b"HTTP", 1, 1)
        assert response.headers.getRawHeaders("x-a") == ["b"]
        assert response.request.method == b"GET"
        assert response.request.absoluteURI == (asking.url + "7").encode()
        assert response.previousResponse is None
        response.setPreviousResponse(response)
        assert response.previousResponse is response
        body = Collected()
        response.deliverBody(body)
        await body.end()
        with pytest.raises(RuntimeError):
            response.deliverBody(Collected())
        assert (await asking.ask("GET")).length is UNKNOWN_LENGTH


@pytest_twisted.ensureDeferred
async def test_treq_does_not_decode_an_encoded_body() -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", steps(Send(head(204, [("Content-Encoding", "gzip, br")]))))
        response = await asking.ask("GET")
        assert response.headers.getRawHeaders("content-encoding") == ["GZIP, BR"]


@pytest.mark.parametrize(
    ("method", "uri"),
    [(b"G T", b"http://127.0.0.1/"), (b"GET", b"http://127.0.0.1/\r\n"), (b"GET", b"gopher://h/")],
)
@pytest_twisted.ensureDeferred
async def test_an_invalid_request_opens_no_connection(method: bytes, uri: bytes) -> None:
    async with agent_client() as asking:
        with pytest.raises(ValueError, match="not "):
            await asking.agent.request(method, uri)
