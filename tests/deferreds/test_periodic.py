"""Periodic work continues after a failure, and ends cleanly in the middle of its work."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import (
    ILogObserver,
    LogEvent,
    capturedLogs,
    formatEvent,
    globalLogPublisher,
)
from zope.interface import implementer

from cartd.deferreds.tasks import Periodic
from cartd.errors import Unavailable


def test_failing_work_is_logged_and_retried() -> None:
    clock = Clock()
    runs: list[float] = []
    logged: list[LogEvent] = []

    async def work() -> None:
        runs.append(clock.seconds())
        raise [Unavailable("closed"), OSError("disk"), ValueError("bug")][len(runs) - 1]

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        logged.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        periodic = Periodic(clock, 10, work)
        periodic.start()
        clock.pump([10, 10])
    finally:
        globalLogPublisher.removeObserver(observe)
    assert runs == [0, 10, 20]
    assert [event["log_level"].name for event in logged] == ["warn", "warn", "critical"]
    Deferred.fromCoroutine(periodic.stop())
    assert not clock.getDelayedCalls()


def test_a_repeated_failure_is_logged_once_and_so_is_its_end() -> None:
    clock = Clock()
    failures = [Unavailable("closed"), Unavailable("closed"), Unavailable("full"), None, None]

    async def work() -> None:
        failure = failures.pop(0)
        if failure is not None:
            raise failure

    with capturedLogs() as entries:
        periodic = Periodic(clock, 10, work)
        periodic.start()
        clock.pump([10] * 4)
    assert not failures
    assert [formatEvent(entry) for entry in entries] == [
        "closed; retrying every 10 s",
        "full; retrying every 10 s",
        "No longer failing: full",
    ]
    Deferred.fromCoroutine(periodic.stop())


def test_stopping_cancels_running_work_and_waits_for_its_end() -> None:
    clock = Clock()
    events: list[str] = []
    cleaning: Deferred[None] = Deferred()

    async def work() -> None:
        try:
            await Deferred()
        except CancelledError:
            events.append("cancelled")
            await cleaning
            events.append("clean")
            raise

    periodic = Periodic(clock, 10, work)
    periodic.start()
    Deferred.fromCoroutine(periodic.stop()).addCallback(lambda _: events.append("stopped"))
    assert events == ["cancelled"]
    cleaning.callback(None)
    assert events == ["cancelled", "clean", "stopped"]
    assert not clock.getDelayedCalls()


def test_stop_without_start_is_allowed() -> None:
    done: list[object] = []
    Deferred.fromCoroutine(Periodic(Clock(), 1, lambda: Deferred()).stop()).addBoth(done.append)
    assert done == [None]
