"""What a response with metrics has: gauges of the store, their age, and its outages."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.errors import DatabaseUnavailable
from cartd.metrics import Metrics
from cartd.model import CartStatus
from cartd.status.exposition import (
    LAG_INTERVAL,
    MAX_AGE,
    STORE_TIMEOUT,
    Exposition,
    ReactorLag,
)
from cartd.status.health import Health, VolumeCheck
from cartd.store import Store
from cartd.store.totals import StatusTotals
from cartd.volume import DiskUsage


class ScriptedStore:
    """Answers at once, fails, or waits until the test fires ``waiting``."""

    def __init__(self) -> None:
        self.totals = self
        self.space = self
        self.found = {CartStatus.STAGING: StatusTotals(2, 10, 4, 1, 3, 50.0)}
        self.failure: Exception | None = None
        self.waiting: Deferred[None] | None = None
        self.queries = 0

    async def by_status(self) -> dict[CartStatus, StatusTotals]:
        self.queries += 1
        if self.failure is not None:
            raise self.failure
        if self.waiting is not None:
            await self.waiting
        return self.found

    async def usage(self) -> tuple[int, int]:
        return 1000, 300

    async def dirty_rows(self) -> int:
        return 7


class Parts:
    def __init__(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.store = ScriptedStore()

        async def usage() -> DiskUsage:
            return DiskUsage(5000, 2000)

        self.volume = VolumeCheck(usage, self.clock)
        self.health = Health([], self.volume, self.clock, self.clock.seconds)
        self.health.start()
        self.exposition = Exposition(self.metrics, cast(Store, self.store), self.health, self.clock)

    def asked(self, accept: str = "") -> tuple[bytes, str]:
        return self.result(self.ask(accept))

    def ask(self, accept: str = "") -> Deferred[tuple[bytes, str]]:
        return Deferred.fromCoroutine(self.exposition.encoded(accept))

    def result(self, asking: Deferred[tuple[bytes, str]]) -> tuple[bytes, str]:
        found: list[Any] = []
        asking.addCallback(found.append)
        [result] = found
        return result  # type: ignore[no-any-return]

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_gauges_of_the_store_are_set(parts: Parts) -> None:
    parts.asked()
    assert parts.value("cartd_carts", status="staging") == 2
    assert parts.value("cartd_carts", status="ready") == 0
    assert parts.value("cartd_carts", status="deleted") is None
    states = {state: parts.value("cartd_cart_files", state=state) for state in STATES}
    assert states == {"waiting": 5, "staged": 4, "failed": 1}
    assert parts.value("cartd_tape_files_waiting") == 3
    assert parts.value("cartd_oldest_unfinished_cart_timestamp_seconds") == 50
    assert parts.value("cartd_volume_bytes", use="written") == 700
    assert parts.value("cartd_volume_bytes", use="reserved") == 300
    assert parts.value("cartd_volume_free_bytes") == 2000
    assert parts.value("cartd_dirty_rows") == 7
    assert parts.value("cartd_ready") == 1


STATES = ("waiting", "staged", "failed")


def test_store_is_asked_once_for_some_seconds(parts: Parts) -> None:
    for _ in range(5):
        parts.asked()
    assert parts.store.queries == 1
    parts.clock.advance(MAX_AGE)
    parts.asked()
    assert parts.store.queries == 2


def test_clients_that_ask_together_share_one_query(parts: Parts) -> None:
    parts.store.waiting = Deferred()
    asking = [parts.ask() for _ in range(3)]
    assert parts.store.queries == 1
    parts.store.waiting.callback(None)
    assert all(parts.result(each)[0] for each in asking)


def test_without_the_database_its_gauges_are_unknown(parts: Parts) -> None:
    parts.asked()
    parts.clock.advance(MAX_AGE)
    parts.store.failure = DatabaseUnavailable("gone")
    body, _ = parts.asked()
    assert b"cartd_carts{" not in body and b"cartd_volume_bytes{" not in body
    assert math.isnan(parts.value("cartd_dirty_rows") or 0)
    assert b"cartd_evictions_total 0.0" in body
    parts.store.failure = None
    assert b"cartd_carts{" in parts.asked()[0]


def test_slow_query_delays_a_response_for_a_moment_and_is_not_repeated(parts: Parts) -> None:
    parts.store.waiting = Deferred()
    asking = parts.ask()
    assert not asking.called
    parts.clock.advance(STORE_TIMEOUT)
    assert b"cartd_carts{" not in parts.result(asking)[0]
    later = parts.ask()
    parts.clock.advance(STORE_TIMEOUT)
    parts.result(later)
    assert parts.store.queries == 1
    parts.store.waiting.callback(None)
    assert b"cartd_carts{" in parts.asked()[0]
    assert parts.store.queries == 1


def test_client_that_leaves_leaves_nothing_behind(parts: Parts) -> None:
    parts.store.waiting = Deferred()
    asking = parts.ask()
    asking.addErrback(lambda _: None)
    asking.cancel()
    parts.exposition.stop()
    parts.store.waiting.addErrback(lambda _: None)
    before = len(parts.clock.getDelayedCalls())
    parts.clock.advance(STORE_TIMEOUT)
    assert len(parts.clock.getDelayedCalls()) <= before


def test_unmounted_volume_has_no_size(parts: Parts) -> None:
    parts.volume.usage = None
    parts.asked()
    assert math.isnan(parts.value("cartd_volume_free_bytes") or 0)


def test_gauges_of_others_are_set_before_each_response(parts: Parts) -> None:
    calls = SimpleNamespace(number=0)

    def set_gauges() -> None:
        calls.number += 1

    parts.exposition.add_gauges(set_gauges)
    parts.asked()
    parts.asked()
    assert calls.number == 2


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text"),
        ("application/openmetrics-text;version=bad;;=,text/plain;q=x", "application/openmetrics"),
        ("text/plain;;version=q=0.5escaping=,", "text/plain; version=0.0.4; charset=utf-8"),
        ("\xff" * 100, "text/plain"),
    ],
)
def test_format_follows_accept(parts: Parts, accept: str, kind: str) -> None:
    body, content_type = parts.asked(accept)
    assert content_type.startswith(kind)
    assert body.endswith(b"# EOF\n") is content_type.startswith("application/openmetrics")


def test_reactor_lag_is_how_late_the_timer_was() -> None:
    clock, metrics = Clock(), Metrics()
    lag = ReactorLag(metrics, clock)
    lag.start()
    for _ in range(3):
        clock.advance(LAG_INTERVAL)

    def total() -> float:
        return metrics.registry.get_sample_value("cartd_reactor_lag_seconds_sum") or 0.0

    assert total() == 0
    clock.advance(LAG_INTERVAL + 2.25)  # busy, and two ticks are missed
    assert total() == 2.25
    clock.advance(LAG_INTERVAL - 0.25)
    assert total() == 2.25
    assert metrics.registry.get_sample_value("cartd_reactor_lag_seconds_count") == 5
    lag.stop()
    assert not clock.getDelayedCalls()
