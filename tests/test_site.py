"""The server's connections: what they may agree on, what is logged of them, and how they end."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any

import pytest
from twisted.internet.testing import StringTransport

from tests.channel_client import Connected


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
        b"POST /u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n" + b"x" * 50
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
