"""Exposes the metrics: sets the gauges, and encodes all in the format that the client accepts.

Strategy: gauges of this process are read when a client asks.  Those of all processes follow from
the store, by queries that read every cart that is not deleted: their results are kept for some
seconds, for all clients.  A database that does not respond delays a response for a moment only, and
then these gauges are absent: what is not known is no zero.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan

from prometheus_client.exposition import choose_encoder
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from cartd.deferreds.tasks import SingleFlight, with_timeout
from cartd.errors import CartdError
from cartd.metrics import Metrics
from cartd.model import UNFINISHED, CartStatus
from cartd.status.health import Health, Level
from cartd.store import Store
from cartd.store.totals import StatusTotals

MAX_AGE = 10.0
"""Seconds for which what the store says is kept."""
STORE_TIMEOUT = 3.0
"""Seconds that a response waits for the store; Prometheus waits ten for the response."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
LAG_INTERVAL = 1.0
"""Seconds of the timer that measures how late the reactor is."""

_STATUSES = [status for status in CartStatus if status is not CartStatus.DELETED]


class ReactorLag:
    """Observes how late a timer is called: how long nothing else was."""

    def __init__(self, metrics: Metrics, clock: IReactorTime) -> None:
        self._metrics = metrics
        self._clock = clock
        self._due = 0.0
        self._loop = LoopingCall(self._observe)
        self._loop.clock = clock

    def start(self) -> None:
        self._due = self._clock.seconds() + LAG_INTERVAL
        self._loop.start(LAG_INTERVAL, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def _observe(self) -> None:
        now = self._clock.seconds()
        self._metrics.reactor_lag.observe(max(now - self._due, 0.0))
        # The next multiple of the interval, as LoopingCall skips those that it has missed.
        missed = max(int((now - self._due) / LAG_INTERVAL), 0)
        self._due += (missed + 1) * LAG_INTERVAL


class Exposition:
    """Sets the gauges and returns the metrics."""

    def __init__(
        self,
        metrics: Metrics,
        store: Store,
        health: Health,
        clock: IReactorTime,
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._health = health
        self._clock = clock
        self._setters: list[Callable[[], object]] = []
        self._query: SingleFlight[None] | None = None
        self._queried_at: float | None = None
        self._kept: Deferred[None] | None = None

    def add_gauges(self, set_gauges: Callable[[], object]) -> None:
        """Call ``set_gauges`` before each response: it sets gauges of this process."""
        self._setters.append(set_gauges)

    def stop(self) -> None:
        """Abandon the running query."""
        if self._kept is not None:
            self._kept.cancel()

    async def encoded(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, by the header ``Accept``."""
        await self._ask_store()
        for set_gauges in self._setters:
            set_gauges()
        self._set_health()
        # The library fails on some values of the header, and repeats others in the content type.
        wanted = OPENMETRICS if OPENMETRICS.partition(";")[0] in accept.lower() else ""
        encode, content_type = choose_encoder(wanted)
        return encode(self._metrics.registry), content_type

    async def _ask_store(self) -> None:
        """Set the gauges of all processes, unless they are recent."""
        recent = self._queried_at
        if recent is not None and self._clock.seconds() - recent < MAX_AGE:
            return
        if self._query is None or not self._query.in_progress:
            self._query = SingleFlight(self._query_store)
            # A slow query goes on for the next client, and there is never a second one.
            self._kept = self._query.result()
            self._kept.addErrback(lambda _: None)
        try:
            await with_timeout(STORE_TIMEOUT, self._query.result(), self._clock)
        except (CartdError, TimeoutError):
            self._forget_store()

    async def _query_store(self) -> None:
        totals = await self._store.totals.by_status()
        used, unwritten = await self._store.space.usage()
        dirty = await self._store.totals.dirty_rows()
        self._queried_at = self._clock.seconds()
        metrics = self._metrics
        metrics.volume_bytes.labels("written").set(used - unwritten)
        metrics.volume_bytes.labels("reserved").set(unwritten)
        metrics.dirty_rows.set(dirty)
        self._set_totals(totals)

    def _set_totals(self, totals: dict[CartStatus, StatusTotals]) -> None:
        metrics = self._metrics
        found = totals.values()
        for status in _STATUSES:
            metrics.carts.labels(status).set(totals[status].carts if status in totals else 0)
        staged, failed = sum(one.staged for one in found), sum(one.failed for one in found)
        metrics.cart_files.labels("staged").set(staged)
        metrics.cart_files.labels("failed").set(failed)
        metrics.cart_files.labels("waiting").set(sum(one.files for one in found) - staged - failed)
        unfinished = [totals[status] for status in UNFINISHED if status in totals]
        metrics.tape_files.set(sum(one.on_tape for one in unfinished))
        metrics.oldest_unfinished.set(min((one.oldest for one in unfinished), default=nan))

    def _forget_store(self) -> None:
        self._queried_at = None
        metrics = self._metrics
        metrics.carts.clear()
        metrics.cart_files.clear()
        metrics.volume_bytes.clear()
        for gauge in (metrics.dirty_rows, metrics.tape_files, metrics.oldest_unfinished):
            gauge.set(nan)

    def _set_health(self) -> None:
        metrics, usage = self._metrics, self._health.volume.usage
        metrics.ready.set(self._health.is_ready)
        for name, check in self._health.document().checks.items():
            metrics.check_failing.labels(name).set(check.status is not Level.OK)
        metrics.volume_free.set(nan if usage is None else usage.free)
        metrics.volume_size.set(nan if usage is None else usage.total)
