"""Notifications to the service manager, over real datagram sockets and a clock of the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from cartd.systemd import (
    MAX_STATUS,
    POLL_INTERVAL,
    STATUS_INTERVAL,
    Notifier,
    ServiceManager,
    watchdog_seconds,
)
from tests.support.notify_socket import NotifySocket


@pytest.fixture(params=["path", "abstract"])
def manager_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@cartd-test-{uuid4()}"
    with NotifySocket(name) as opened:
        yield opened


class Service:
    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self.clock = Clock()
        self.started = True
        self.status = "idle"
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
        assert notifier is not None
        self.manager = ServiceManager(
            notifier,
            self.clock,
            watchdog=watchdog,
            started=lambda: self.started,
            status=lambda: self.status,
        )

    def advance(self, seconds: float, step: float = POLL_INTERVAL) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)


def test_ready_is_sent_once_when_the_start_has_ended(manager_socket: NotifySocket) -> None:
    service = Service(manager_socket.address)
    service.started = False
    service.manager.start()
    service.advance(5)
    assert "READY=1" not in manager_socket.arrived()
    service.started = True
    service.advance(5)
    assert manager_socket.arrived() == ["READY=1"]


def test_status_is_sent_when_it_changes_but_not_too_often(manager_socket: NotifySocket) -> None:
    service = Service(manager_socket.address)
    service.manager.start()
    assert manager_socket.arrived() == ["READY=1", "STATUS=idle"]
    for second in range(12):
        service.status = f"at {second}"
        service.advance(1)
    sent = manager_socket.arrived()
    assert len(sent) == 12 / STATUS_INTERVAL
    service.advance(STATUS_INTERVAL)
    manager_socket.arrived()
    service.advance(60)
    assert manager_socket.arrived() == []


def test_status_is_one_short_line(manager_socket: NotifySocket) -> None:
    service = Service(manager_socket.address)
    service.status = "a\nREADY=0" + "x" * 1000
    service.manager.start()
    [_, status] = manager_socket.arrived()
    assert "\n" not in status and len(status) == len("STATUS=") + MAX_STATUS


def test_watchdog_is_fed_at_half_of_its_time_until_the_end(manager_socket: NotifySocket) -> None:
    service = Service(manager_socket.address, watchdog=10.0)
    service.started = False
    service.manager.start()
    service.advance(20)
    fed = [message for message in manager_socket.arrived() if message == "WATCHDOG=1"]
    assert len(fed) == 1 + 20 / 5
    service.manager.begin_stop()
    service.advance(5)
    assert manager_socket.arrived() == ["STOPPING=1", "WATCHDOG=1"]
    service.manager.stop()
    assert not service.clock.getDelayedCalls()


def test_stop_before_the_start_has_ended_is_never_ready(manager_socket: NotifySocket) -> None:
    service = Service(manager_socket.address)
    service.started = False
    service.manager.start()
    service.manager.begin_stop()
    service.started = True
    service.advance(5)
    assert "READY=1" not in manager_socket.arrived()


def test_a_manager_that_does_not_listen_is_told_later(tmp_path: Path) -> None:
    with capturedLogs() as lines:
        service = Service(str(tmp_path / "notify"))
        service.manager.start()
        service.advance(5)
    [line] = [line for line in lines if line.get("log_namespace") == "cartd.systemd"]
    assert "Cannot notify the service manager" in str(line["log_format"])
    with NotifySocket(tmp_path / "notify") as late:
        service.advance(1)
        assert late.arrived() == ["READY=1"]


def test_a_manager_that_reads_nothing_does_not_block(tmp_path: Path) -> None:
    with NotifySocket(tmp_path / "notify") as full:
        notifier = Notifier(full.address)
        while notifier.send("STATUS=x" + "y" * 1000):
            pass
        assert not notifier.send("WATCHDOG=1")


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_without_a_usable_socket_nobody_is_notified(address: str) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": address}) is None
    assert Notifier.from_environment({}) is None


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_of_the_environment(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environ, 7) == seconds
