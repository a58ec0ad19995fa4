"""Bodies of requests of the HTTP agent: sent whole, paused, aborted, answered early, invalid."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
import trustme
from twisted.internet.defer import CancelledError
from twisted.internet.testing import StringTransport
from twisted.web.client import (
    FileBodyProducer,
    RequestGenerationFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH

from cartd.archive.http_messages import Request, Upload, WrongBodyLength
from cartd.archive.responses import transport_error
from tests.support.agent_fixture import Collected
from tests.support.archive_client_fixture import Offers
from tests.support.upload_server import CREATED, Received, Written, upload_server

LARGE = bytes(range(256)) * 40_000
TOO_LARGE = b"HTTP/1.1 413 No\r\nContent-Length: 3\r\n\r\nno!"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"


@pytest.mark.parametrize("body", [b"", b"abc", LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest_twisted.ensureDeferred
async def test_treq_sends_bytes_and_reuses_the_connection(
    method: str, tls: bool, body: bytes, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "roots.pem")
    offers = Offers(authority.issue_cert("127.0.0.1")) if tls else None
    async with upload_server(offers, tmp_path / "roots.pem" if tls else None) as server:
        for _ in range(3):
            response = await server.treq.request(method, server.url, data=body)
            assert response.code == 201
            assert await treq.content(response) == b""
        [connection] = server.connections
        assert connection.bodies == [body] * 3
        for head in connection.heads:
            assert head.startswith(method.encode() + b" /7 HTTP/1.1\r\n")
            assert head.count(b"\r\nContent-Length: %d" % len(body)) == 1


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_read_pauses_the_body(tls: bool, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "roots.pem")
    offers = Offers(authority.issue_cert("127.0.0.1")) if tls else None
    async with upload_server(offers, tmp_path / "roots.pem" if tls else None) as server:
        server.on_head = lambda connection: connection.transport.pauseProducing()
        piece = b"x" * 50_000
        body = Written(len(piece) * 1000)
        asked = server.put(body)
        await server.until(lambda: bool(server.connections and server.connections[0].heads))
        left = 1000
        while body.calls[-1] != "pause":
            body.consumer.write(piece)
            left -= 1
            assert left
            await server.until(lambda: True)
        server.connections[0].transport.resumeProducing()
        await server.until(lambda: body.calls[-1] == "resume")
        for _ in range(left):
            body.consumer.write(piece)
        body.written.callback(None)
        assert (await asked).code == 201
        assert len(server.connections[0].bodies[0]) == body.length
        changes = [call for call in body.calls if call in ("pause", "resume")]
        assert changes == ["pause", "resume"] * (len(changes) // 2) + ["pause"] * (len(changes) % 2)
        assert body.calls.count("start") == 1
        assert "stop" not in body.calls


def test_a_body_is_paused_and_resumed_in_turn() -> None:
    body = Written(3)
    upload = Upload(body, StringTransport(), lambda _: None)
    upload.start()
    # The transport may have been paused by its previous producer.
    upload.resumeProducing()
    upload.pauseProducing()
    upload.pauseProducing()
    upload.resumeProducing()
    assert body.calls == ["start", "pause", "resume"]
    upload.stopProducing()
    upload.pauseProducing()
    upload.stopProducing()
    assert body.calls == ["start", "pause", "resume", "stop"]


@pytest_twisted.ensureDeferred
async def test_a_cancelled_request_aborts_its_body() -> None:
    async with upload_server() as server:
        body = Written(10)
        asked = server.put(body)
        await server.until(lambda: bool(server.connections and server.connections[0].heads))
        body.consumer.write(b"abc")
        asked.cancel()
        with pytest.raises(CancelledError):
            await asked
        assert body.calls == ["start", "stop"]
        body.consumer.write(b"defghij")
        await server.until(lambda: not server.connections[0].is_open)
        assert b"abc".startswith(server.connections[0].bodies[0])
        assert (await server.put(FileBodyProducer(BytesIO(b"abc")))).code == 201
        assert len(server.connections) == 2


@pytest_twisted.ensureDeferred
async def test_a_lost_connection_stops_the_body() -> None:
    async with upload_server() as server:
        server.on_head = lambda connection: connection.transport.abortConnection()
        body = Written(10)
        asked = server.put(body)
        with pytest.raises(ResponseNeverReceived):
            await asked
        assert body.calls == ["start", "stop"]


@pytest_twisted.ensureDeferred
async def test_a_request_with_a_body_is_not_retried() -> None:
    async with upload_server() as server:
        assert (await server.put(FileBodyProducer(BytesIO(b"abc")))).code == 201
        server.on_head = lambda connection: connection.transport.abortConnection()
        with pytest.raises(ResponseNeverReceived):
            await server.put(FileBodyProducer(BytesIO(b"abc")))
        assert len(server.connections) == 1


@pytest_twisted.ensureDeferred
async def test_an_early_error_response_ends_the_body() -> None:
    async with upload_server() as server:
        server.on_head = lambda connection: connection.transport.write(TOO_LARGE[:-1])
        body = Written(10)
        response = await server.put(body)
        assert response.code == 413
        assert body.calls == ["start", "stop"]
        body.consumer.write(b"0123456789")
        collected = Collected()
        response.deliverBody(collected)
        server.connections[0].transport.write(TOO_LARGE[-1:])
        await collected.end()
        assert collected.data == b"no!"
        await server.until(lambda: not server.connections[0].is_open)
        assert server.connections[0].bodies == [b""]


@pytest_twisted.ensureDeferred
async def test_an_early_error_is_received_while_the_body_is_paused() -> None:
    async with upload_server() as server:

        def reject(connection: Received) -> None:
            connection.transport.pauseProducing()
            connection.transport.write(TOO_LARGE)

        server.on_head = reject
        response = await server.put(FileBodyProducer(BytesIO(LARGE)))
        assert response.code == 413
        assert await treq.content(response) == b"no!"
        server.connections[0].transport.resumeProducing()
        await server.until(lambda: not server.connections[0].is_open)
        assert len(server.connections[0].bodies[0]) < len(LARGE)


@pytest.mark.parametrize("order", ["response-ends-first", "body-ends-first"])
@pytest_twisted.ensureDeferred
async def test_an_early_success_does_not_end_the_body(order: str) -> None:
    async with upload_server(reply=b"") as server:
        rest = OK[-3:]
        server.on_head = lambda connection: connection.transport.write(OK[:-3])
        body = Written(6)
        response = await server.put(body)
        assert response.code == 200
        collected = Collected()
        response.deliverBody(collected)
        [connection] = server.connections
        body.consumer.write(b"abc")
        if order == "response-ends-first":
            connection.transport.write(rest)
            await collected.end()
        body.consumer.write(b"def")
        body.written.callback(None)
        await server.until(lambda: bytes(connection.bodies[0]) == b"abcdef")
        if order == "body-ends-first":
            connection.transport.write(rest)
            await collected.end()
        assert collected.data == b"yes"
        server.reply, server.on_head = CREATED, lambda _: None
        assert (await server.put(FileBodyProducer(BytesIO(b"ghi")))).code == 201
        assert connection.bodies == [b"abcdef", b"ghi"]
        body = Written(3)
        asked = server.put(body)
        server.pool.closeCachedConnections()
        body.consumer.write(b"jkl")
        body.written.callback(None)
        assert (await asked).code == 201
        assert connection.bodies == [b"abcdef", b"ghi", b"jkl"]


@pytest_twisted.ensureDeferred
async def test_closing_the_pool_aborts_a_body_after_its_response() -> None:
    async with upload_server(reply=b"") as server:
        server.on_head = lambda connection: connection.transport.write(CREATED)
        body = Written(6)
        assert (await server.put(body)).code == 201
        assert body.calls == ["start"]
        server.reply, server.on_head = CREATED, lambda _: None
        assert (await server.put(FileBodyProducer(BytesIO(b"ghi")))).code == 201
        assert len(server.connections) == 2
        await server.pool.closeCachedConnections()
        assert body.calls == ["start", "stop"]


@pytest_twisted.ensureDeferred
async def test_connection_close_before_the_end_of_the_body_aborts_it() -> None:
    async with upload_server(reply=b"") as server:
        last = CREATED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        server.on_head = lambda connection: connection.transport.write(last)
        body = Written(6)
        assert (await server.put(body)).code == 201
        assert body.calls == ["start", "stop"]
        await server.until(lambda: not server.connections[0].is_open)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([b"ab"], WrongBodyLength),
        ([b"abcd"], WrongBodyLength),
        ([b"abc", b"d"], WrongBodyLength),
        ([b"ab", OSError("disk")], OSError),
        ([OSError("disk")], OSError),
    ],
    ids=["short", "long", "one-more", "fails", "fails-at-once"],
)
@pytest_twisted.ensureDeferred
async def test_a_body_that_fails_drops_the_connection(
    pieces: list[Any], error: type[Exception]
) -> None:
    async with upload_server(reply=b"") as server:
        body = Written(3)
        asked = server.put(body)
        await server.until(lambda: body.consumer is not None)
        for piece in pieces:
            if isinstance(piece, bytes):
                body.consumer.write(piece)
            else:
                body.written.errback(piece)
        if pieces == [b"ab"]:
            body.written.callback(None)
        with pytest.raises(RequestGenerationFailed) as caught:
            await asked
        assert caught.value.reasons[0].check(error)
        assert transport_error(caught.value) is None
        await server.until(lambda: not any(one.is_open for one in server.connections))
        for connection in server.connections:
            assert all(len(received) <= 3 for received in connection.bodies)


@pytest_twisted.ensureDeferred
async def test_a_body_that_fails_after_its_response_fails_the_response() -> None:
    async with upload_server(reply=b"") as server:
        server.on_head = lambda connection: connection.transport.write(OK[:-1])
        body = Written(3)
        response = await server.put(body)
        collected = Collected()
        response.deliverBody(collected)
        body.written.errback(OSError("disk"))
        assert isinstance(await collected.end(), RequestGenerationFailed)


@pytest_twisted.ensureDeferred
async def test_a_body_that_cannot_begin_fails_its_request() -> None:
    class Broken(Written):
        def startProducing(self, consumer: Any) -> Any:
            raise OSError("disk")

    async with upload_server() as server:
        with pytest.raises(RequestGenerationFailed) as caught:
            await server.put(Broken(3))
        assert caught.value.reasons[0].check(OSError)


@pytest_twisted.ensureDeferred
async def test_bytes_after_the_response_end_the_body() -> None:
    async with upload_server(reply=b"") as server:
        server.on_head = lambda connection: connection.transport.write(CREATED)
        body = Written(3)
        assert (await server.put(body)).code == 201
        server.connections[0].transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await server.until(lambda: body.calls == ["start", "stop"])
        await server.until(lambda: not server.connections[0].is_open)


@pytest_twisted.ensureDeferred
async def test_a_malformed_response_stops_the_body() -> None:
    async with upload_server() as server:
        server.on_head = lambda connection: connection.transport.write(b"SSH-2.0\r\n")
        body = Written(3)
        with pytest.raises(ResponseFailed):
            await server.put(body)
        assert body.calls == ["start", "stop"]


@pytest.mark.parametrize(
    ("method", "length"), [(b"PUT", UNKNOWN_LENGTH), (b"PUT", -1), (b"GET", 3), (b"HEAD", 3)]
)
@pytest_twisted.ensureDeferred
async def test_an_invalid_body_opens_no_connection(method: bytes, length: Any) -> None:
    async with upload_server() as server:
        with pytest.raises(ValueError, match="body"):
            await server.put(Written(length), method)
        assert server.connections == []


def test_a_body_is_framed_by_content_length_alone() -> None:
    head = Request(b"PROPFIND", b"http://h/7", Headers(), Written(12)).head
    assert head.count(b"\r\nContent-Length: 12\r\n") == 1
    assert b"Transfer-Encoding" not in head
