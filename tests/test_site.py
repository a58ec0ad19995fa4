"""The server's connections: how long they may stand still, and what they may agree on."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from cartd.site import IDLE_TIMEOUT, STALL_TIMEOUT, LimitedSite

PATIENCE = 15.0
"""Seconds that Twisted gives a connection to close by itself before it is broken."""


@implementer(IPushProducer)
class Body:
    """A body that goes on until the test ends it."""

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...


class Download(Resource):
    isLeaf = True
    request: Request

    def render(self, request: Request) -> Any:
        self.request = request
        request.setHeader(b"Content-Length", b"4")
        request.registerProducer(Body(), True)
        request.write(b"da")
        return NOT_DONE_YET

    def end(self) -> None:
        self.request.write(b"ta")
        self.request.unregisterProducer()
        self.request.finish()


class Connected:
    """A client's connection to a site, with a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.download = Download()
        self.site = LimitedSite(self.download, self.clock, max_body=100)
        self.transport = StringTransport()
        self.channel = self.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def ask(self) -> None:
        self.channel.dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    @property
    def closing(self) -> bool:
        return bool(self.transport.disconnecting)

    @property
    def broken(self) -> bool:
        return bool(self.transport.disconnected)


def test_a_client_that_takes_nothing_for_long_is_given_up() -> None:
    client = Connected()
    client.ask()
    client.channel.pauseProducing()
    client.clock.advance(STALL_TIMEOUT - 1)
    assert not client.closing
    client.clock.advance(1)
    assert client.closing and not client.broken
    client.clock.advance(PATIENCE)
    assert client.broken


def test_a_slow_client_that_takes_something_now_and_then_is_served() -> None:
    client = Connected()
    client.ask()
    for _ in range(5):
        client.channel.pauseProducing()
        client.clock.advance(STALL_TIMEOUT - 1)
        client.channel.resumeProducing()
        client.clock.advance(STALL_TIMEOUT + 1)
    client.download.end()
    assert not client.closing
    assert client.transport.value().endswith(b"\r\n\r\ndata")


def test_a_request_is_logged_with_the_date_of_the_machine_and_not_of_the_timers() -> None:
    client = Connected()
    client.site.startFactory()
    lines: list[str] = []
    log: Any = client.site.logFile
    log.write = lines.append
    client.ask()
    client.download.end()
    client.site.stopFactory()
    [line] = lines
    logged = datetime.strptime(line.split("[")[1].split("]")[0], "%d/%b/%Y:%H:%M:%S %z")
    assert abs(logged.timestamp() - time.time()) < 3600
    assert client.clock.seconds() < 3600


def test_between_requests_a_connection_is_not_kept_for_long() -> None:
    client = Connected()
    client.ask()
    client.download.end()
    client.clock.advance(IDLE_TIMEOUT - 1)
    client.ask()
    client.clock.advance(IDLE_TIMEOUT + 1)
    assert not client.closing
    client.download.end()
    client.clock.advance(IDLE_TIMEOUT)
    assert client.closing


def test_a_request_that_does_not_come_to_its_end_is_given_up() -> None:
    client = Connected()
    client.channel.dataReceived(b"POST /u HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    client.clock.advance(IDLE_TIMEOUT - 1)
    assert not client.closing
    client.channel.dataReceived(b"d")
    client.clock.advance(IDLE_TIMEOUT - 1)
    assert not client.closing
    client.clock.advance(1)
    assert client.closing


def a_file_on_a_broken_disk(length: int | None) -> IO[bytes]:
    """A pipe that nobody reads: what is written to it fails, now or when it is flushed."""
    nobody_reads, kept = os.pipe()
    os.close(nobody_reads)
    return os.fdopen(kept, "wb")


def no_file(length: int | None) -> IO[bytes]:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory")


@pytest.mark.parametrize(
    ("kept", "reason"),
    [(a_file_on_a_broken_disk, "Broken pipe"), (no_file, "No usable temporary directory")],
    ids=["a broken disk", "no file at all"],
)
def test_a_body_that_the_disk_does_not_take_is_refused_and_the_connection_ended(
    kept: Callable[[int | None], IO[bytes]], reason: str
) -> None:
    client = Connected()
    site: Any = client.site
    site.getContentFile = kept  # Twisted's way to say where a body is kept
    client.channel.dataReceived(
        b"POST /u HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n" + b"x" * 50
    )
    head, _, body = client.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 507 ")
    assert json.loads(body)["message"] == f"The body cannot be kept: {reason}"
    client.channel.dataReceived(b"x" * 49)
    assert client.closing
    client.channel.connectionLost()
    assert client.clock.getDelayedCalls() == []


def test_all_connections_can_be_ended_and_those_that_are_sending_break() -> None:
    client = Connected()
    idle = StringTransport()
    client.site.buildProtocol(None).makeConnection(idle)
    client.ask()
    client.site.close_connections()
    assert client.broken
    assert idle.disconnecting and not idle.disconnected


def test_over_tls_no_other_protocol_is_offered() -> None:
    assert Connected().site.acceptableProtocols() == [b"http/1.1"]
