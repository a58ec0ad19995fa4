"""The monotonic clock of the reactor's timers, and the observer of leases."""

from __future__ import annotations

import subprocess
import sys

from cartd.runtime import monotonic_clock_from
from cartd.store.leases import LeaseObserver


class Machine:
    """The two clocks of a machine."""

    wall = 1_800_000_000.0
    up = 5.0


def test_a_monotonic_clock_ignores_changes_of_the_date() -> None:
    machine = Machine()
    seconds = monotonic_clock_from(lambda: machine.wall, lambda: machine.up)
    assert seconds() == 1_800_000_000.0
    machine.wall -= 3600
    machine.up += 2
    assert seconds() == 1_800_000_002.0
    machine.wall += 7200
    assert seconds() == 1_800_000_002.0


TIMERS = """
import time
date = time.time
ahead = 0.0
time.time = lambda: date() + ahead
from twisted.internet import reactor, task
from cartd.runtime import use_monotonic_clock
fired = []
reactor.callLater(0.01, fired.append, "scheduled before")
use_monotonic_clock(reactor)
reactor.callLater(0.02, fired.append, "scheduled after")
reactor.callLater(3000, fired.append, "an hour too early")
loop = task.LoopingCall(fired.append, "loop")
def jump():
    global ahead
    ahead = AHEAD
    loop.start(0.01)
    reactor.callLater(0.05, reactor.stop)
reactor.callWhenRunning(jump)
reactor.run()
print(sorted(set(fired)))
"""


def timers_that_fire(ahead: str) -> str:
    """Return the timers that fire shortly after the clock was set ``ahead`` by so many seconds."""
    program = TIMERS.replace("AHEAD", ahead)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return run.stdout.strip()


def test_timers_fire_in_time_when_the_clock_is_set_back() -> None:
    assert timers_that_fire("-3600") == "['loop', 'scheduled after', 'scheduled before']"


def test_timers_do_not_fire_early_when_the_clock_is_set_ahead() -> None:
    assert timers_that_fire("3600") == "['loop', 'scheduled after', 'scheduled before']"


class TestLeaseObserver:
    def test_a_renewing_process_is_alive_whatever_the_dates(self) -> None:
        observer = LeaseObserver(60)
        for now in range(0, 600, 5):
            assert observer.expired({"behind": -now, "ahead": 10_000 + now}, now) == set()

    def test_a_process_that_stops_renewing_is_dead_in_time(self) -> None:
        observer = LeaseObserver(60)
        ends = {"dead": 10_000.0}
        assert [observer.expired(ends, now) for now in (100, 159, 160, 161)] == [
            set(),
            set(),
            {"dead"},
            {"dead"},
        ]

    def test_a_process_that_renews_again_is_alive(self) -> None:
        observer = LeaseObserver(60)
        observer.expired({"suspended": 50.0}, 0)
        assert observer.expired({"suspended": 50.0}, 60) == {"suspended"}
        assert observer.expired({"suspended": 51.0}, 61) == set()
        assert observer.expired({"suspended": 51.0}, 120) == set()

    def test_an_observed_process_without_leases_is_removed(self) -> None:
        observer = LeaseObserver(60)
        observer.expired({"one": 50.0}, 0)
        observer.expired({}, 5)
        assert observer.expired({"one": 50.0}, 60) == set()
