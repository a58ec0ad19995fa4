"""The server's connections: what they may agree on, what is logged of them, and how they end."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

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
