"""Requests that the directory archive rejects by their head, and malformed HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from tests.support.directory_archive_client import Answer, Exchange, directory_archive

PUT = b"PUT /new HTTP/1.1\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n"
REFUSED = {
    "another host": (PUT + b"Host: evil.example\r\n\r\n", 421),
    "no host": (PUT + b"\r\n", 400),
    "two hosts": (PUT + b"Host: localhost\r\nHost: localhost\r\n\r\n", 400),
    "a page of another site": (
        PUT + b"Host: localhost\r\nOrigin: https://evil.example\r\n\r\n", 403),
    "a host in the target": (PUT.replace(b"/new", b"http://evil.example/new")
                             + b"Host: localhost\r\n\r\n", 421),
    "an unknown transfer coding": (
        b"PUT /new HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "a file of unknown length": (
        b"PUT /new HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n", 411),
    "a coded body": (PUT + b"Host: localhost\r\nContent-Encoding: gzip\r\n\r\n", 415),
    "no HTTP": (b"\x16\x03\x01\x02\r\n\r\n", 400),
    "a bad header": (b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
    "two lengths": (PUT + b"Host: localhost\r\nContent-Length: 1\r\n\r\n", 400),
    "a long head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
}  # fmt: skip


async def exchange(port: int, request: bytes) -> Answer:
    sent = Exchange(request, pause=False)
    await connectProtocol(TCP4ClientEndpoint(_reactor, "127.0.0.1", port), sent)
    return await sent.closed


@pytest.mark.parametrize(("request_", "status"), REFUSED.values(), ids=REFUSED)
@pytest_twisted.ensureDeferred
async def test_early_response_is_sent_before_100_continue(
    tmp_path: Path, request_: bytes, status: int
) -> None:
    async with directory_archive(tmp_path) as client:
        answer = await exchange(client.port, request_)  # 100 Continue would be the first
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert {"date", "connection"} <= answer.headers.keys()
    assert answer.whole
    assert b"server." not in answer.body  # it has no such settings
    assert not (tmp_path / "new").exists()


@pytest_twisted.ensureDeferred
async def test_a_page_of_an_allowed_origin_can_read_responses(tmp_path: Path) -> None:
    page = "https://portal.example.org"
    async with directory_archive(tmp_path, "--allowed-origin", page) as client:
        asked = await client.ask(
            "OPTIONS", "/new", origin=page, access_control_request_method="PUT"
        )
        put = await client.ask("PUT", "/new", b"data", origin=page)
        refused = await client.ask("PUT", "/new", b"data" * 9, origin=page)
    assert (asked.status, put.status, refused.status) == (204, 201, 409)
    assert "PUT" in asked.headers["access-control-allow-methods"]
    for answer in (asked, put, refused):
        assert answer.headers["access-control-allow-origin"] == page
