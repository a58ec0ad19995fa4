"""Levels of the checks, since when, and the readiness that follows; on a clock of the test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.errors import VolumeUnavailable
from cartd.status.health import (
    POLL_INTERVAL,
    VOLUME_TIMEOUT,
    ArchiveCheck,
    DatabaseCheck,
    Finding,
    Health,
    Level,
    RecoveryCheck,
    SpaceCheck,
    VolumeCheck,
)
from cartd.volume import DiskUsage

EMPTY = DiskUsage(total=1000, free=1000)


class Disk:
    """A disk that answers, fails or hangs; counts the polls that it has not answered."""

    def __init__(self) -> None:
        self.answer: DiskUsage | Exception | None = EMPTY
        self.hanging = 0

    async def probe(self) -> DiskUsage:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        self.hanging += 1
        return await Deferred()


@dataclass
class Switch:
    name: str
    level: Level = Level.OK

    def finding(self) -> Finding:
        return Finding(self.level, "" if self.level is Level.OK else "switched")


class Parts:
    def __init__(self, *checks: Any) -> None:
        self.clock = Clock()
        self.disk = Disk()
        self.volume = VolumeCheck(self.disk.probe, self.clock)
        self.health = Health(checks, self.volume, self.clock, self.clock.seconds)
        self.health.start()

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds / POLL_INTERVAL)):
            self.clock.advance(POLL_INTERVAL)


@pytest.mark.parametrize("level", Level)
def test_the_most_severe_check_is_the_status(level: Level) -> None:
    health = Parts(Switch("one"), Switch("two", level), Switch("three")).health
    assert health.readiness().status is level is health.document().status
    assert health.is_ready is (level is not Level.FAIL)
    assert health.readiness().reasons == ({} if level is Level.OK else {"two": "switched"})


def test_a_check_has_its_status_since_that_changed_even_if_nobody_asked() -> None:
    switch = Switch("one")
    parts = Parts(switch)
    parts.advance(10)
    switch.level = Level.WARN
    parts.advance(POLL_INTERVAL)
    parts.advance(20)
    changed = parts.health.document().checks["one"]
    assert (changed.status, changed.since.timestamp()) == (Level.WARN, 10 + POLL_INTERVAL)
    assert parts.health.document().checks["volume"].since.timestamp() == 0


def test_a_stop_is_not_ready() -> None:
    health = Parts().health
    assert health.is_ready
    health.begin_stop()
    assert health.readiness().reasons == {"service": "the service is stopping"}
    assert not health.is_ready


def test_a_volume_that_is_not_mounted_fails_until_it_is_back() -> None:
    parts = Parts()
    parts.disk.answer = VolumeUnavailable("its identity file is missing")
    parts.advance(POLL_INTERVAL)
    assert parts.health.readiness().reasons == {"volume": "not mounted"}
    assert "identity file" in str(parts.health.document().checks["volume"].detail)
    assert not parts.health.is_ready and parts.volume.usage is None
    parts.disk.answer = EMPTY
    parts.advance(POLL_INTERVAL)
    assert parts.health.is_ready and parts.volume.usage == EMPTY


def test_an_error_of_the_disk_fails() -> None:
    parts = Parts()
    parts.disk.answer = OSError(5, "Input/output error")
    parts.advance(POLL_INTERVAL)
    assert parts.health.readiness().reasons == {"volume": "cannot be used"}


def test_a_hanging_disk_fails_after_a_time_and_is_polled_once() -> None:
    parts = Parts()
    parts.disk.answer = None
    parts.advance(VOLUME_TIMEOUT)
    assert parts.health.is_ready
    parts.advance(10 * VOLUME_TIMEOUT)
    assert parts.health.readiness().reasons == {"volume": "does not respond"}
    assert parts.disk.hanging == 1


def test_only_a_poll_that_runs_can_hang() -> None:
    parts = Parts()
    Deferred.fromCoroutine(parts.health.stop())
    parts.clock.advance(10 * VOLUME_TIMEOUT)
    assert parts.health.is_ready


def test_polling_ends_although_the_disk_hangs() -> None:
    parts = Parts()
    parts.disk.answer = None
    parts.advance(POLL_INTERVAL)
    stopped = Deferred.fromCoroutine(parts.health.stop())
    assert stopped.called and not parts.clock.getDelayedCalls()


def test_an_unavailable_database_or_archive_warns() -> None:
    reasons: dict[str, str | None] = {"database": None, "archive": None}
    health = Parts(
        DatabaseCheck(lambda: reasons["database"]), ArchiveCheck(lambda: reasons["archive"])
    ).health
    assert health.readiness().status is Level.OK
    reasons.update(database="connection refused at db.example.org", archive="no route")
    assert health.readiness().reasons == {"database": "unavailable", "archive": "unavailable"}
    assert health.readiness().status is Level.WARN and health.is_ready
    details = {name: check.detail for name, check in health.document().checks.items()}
    assert details["database"] == "connection refused at db.example.org"
    assert details["archive"] == "Carts wait for the archive: no route"
    assert details["volume"] is UNSET


def test_recovery_fails_until_it_has_ended() -> None:
    recovered = [False]
    health = Parts(RecoveryCheck(lambda: recovered[0])).health
    assert not health.is_ready
    recovered[0] = True
    assert health.is_ready


@pytest.mark.parametrize(
    ("usage", "level"),
    [(None, Level.OK), (DiskUsage(1000, 100), Level.OK), (DiskUsage(1000, 99), Level.WARN)],
)
def test_space_below_the_reserve_warns(usage: DiskUsage | None, level: Level) -> None:
    assert SpaceCheck(lambda: usage, 100).finding().level is level
