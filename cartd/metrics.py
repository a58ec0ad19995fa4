"""The table of all metrics of the service, in the names and units of Prometheus.

Components count and observe; gauges are set by :mod:`cartd.status.gauges` when they are asked for.
No label has a uid, a user or a path: labels have few values, chosen by the code, but ``code``,
which is an HTTP status.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cartd import __version__
from twisted import __version__ as twisted_version

disable_created_metrics()

MINUTE, HOUR, DAY = 60, 3600, 86_400
LONG = (1, 5, 15, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, 12 * HOUR, DAY, 3 * DAY, 7 * DAY)
"""Buckets for what may take a second or a week."""
SHORT = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, MINUTE)
"""Buckets for the requests of one client or of one file."""
QUICK = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5)
"""Buckets for what takes milliseconds."""
AGES = (HOUR, 6 * HOUR, DAY, 3 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY)

POST_OUTCOMES = ("accepted", "repeated", "rejected")
CART_OUTCOMES = ("complete", "partial", "failed")
WAYS = ("fetched", "linked", "kept")
DOWNLOAD_OUTCOMES = ("complete", "range", "disconnected", "damaged", "failed")
VERIFICATION_RESULTS = ("intact", "damaged")
STORE_KINDS = ("read", "write")


class FastCounter(Collector):
    """A counter for what is counted with each request or file, in the reactor's thread only.

    It needs no lock, and takes a quarter of the time of the library's.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
    ) -> None:
        self.labelnames = tuple(labelnames)
        self._name = name
        self._documentation = documentation
        self._values: dict[tuple[str, ...], float] = {} if labelnames else {(): 0}
        registry.register(self)

    def inc(self, *labels: str, by: float = 1) -> None:
        try:
            self._values[labels] += by
        except KeyError:
            self._values[labels] = by

    def describe(self) -> list[Metric]:
        return [self._family()]

    def collect(self) -> list[Metric]:
        family = self._family()
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return [family]

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._documentation, labels=self.labelnames)


class FastHistogram(Collector):
    """A histogram with labels for what is observed with each request, as :class:`FastCounter`."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.labelnames = tuple(labelnames)
        self._name = name
        self._documentation = documentation
        self._bounds = buckets
        self._counts: dict[tuple[str, ...], list[int]] = {}
        """How many values are in each bucket but not in those before it."""
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
            self._sums[labels] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def describe(self) -> list[Metric]:
        return [self._family()]

    def collect(self) -> list[Metric]:
        family = self._family()
        bounds = [*(floatToGoString(bound) for bound in self._bounds), "+Inf"]
        for labels, counts in self._counts.items():
            buckets = [*zip(bounds, accumulate(counts), strict=True)]
            family.add_metric(labels, buckets, self._sums[labels])
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self.labelnames)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        gauge = partial(Gauge, registry=registry)
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        fast_counter = partial(FastCounter, registry=registry)
        fast_histogram = partial(FastHistogram, registry=registry)

        # The service
        build = gauge(
            "cartd_build_info", "Always 1, by versions.", ["version", "python", "twisted"]
        )
        build.labels(__version__, platform.python_version(), twisted_version).set(1)
        self.ready = gauge("cartd_ready", "Whether the service is ready, as by /-/ready.")
        self.check_failing = gauge(
            "cartd_check_failing",
            "Whether a check of /-/health does not pass: 0 it passes, 1 it warns or fails.",
            ["check"],
        )
        self.reactor_lag = histogram(
            "cartd_reactor_lag_seconds",
            "How late a timer of each second was: how long the event loop was busy.",
            buckets=QUICK,
        )
        self.threads_busy = gauge("cartd_threads_busy", "Threads that work, by pool.", ["pool"])
        self.threads_limit = gauge(
            "cartd_threads_limit", "Maximum number of threads, by pool.", ["pool"]
        )
        self.thread_jobs_waiting = gauge(
            "cartd_thread_jobs_waiting", "Jobs that wait for a thread, by pool.", ["pool"]
        )

        # HTTP
        self.requests = fast_counter(
            "cartd_http_requests_total",
            "Requests, by method and status; 499: the client disconnected before the response.",
            ["method", "code"],
        )
        self.rejections = fast_counter(
            "cartd_rejections_total",
            "Requests and connections rejected with an error, by status.",
            ["code"],
        )
        self.connections = gauge("cartd_connections", "Open connections of clients.")
        self.connections_limit = gauge(
            "cartd_connections_limit", "Maximum number of connections of clients."
        )

        # Carts
        self.carts = gauge(
            "cartd_carts", "Carts that are not deleted, by status, of all processes.", ["status"]
        )
        self.cart_files = gauge(
            "cartd_cart_files",
            "Files of these carts, by state: waiting, staged, failed; of all processes.",
            ["state"],
        )
        self.oldest_unfinished = gauge(
            "cartd_oldest_unfinished_cart_timestamp_seconds",
            "When the oldest cart was posted that is neither ready nor in error.",
        )
        self.carts_staging = gauge("cartd_carts_staging", "Carts that this process is staging.")
        self.carts_posted = counter(
            "cartd_carts_posted_total", "Manifests posted, by outcome.", ["outcome"]
        )
        self.carts_finished = counter(
            "cartd_carts_finished_total",
            "Carts that were staged, by outcome: complete, partial or failed.",
            ["outcome"],
        )
        self.staging_seconds = histogram(
            "cartd_cart_staging_seconds",
            "Time from the post of a cart until it is ready.",
            buckets=LONG,
        )
        self.files_staged = counter(
            "cartd_files_staged_total",
            "Files staged, by way: fetched from the archive, linked to another cart's file, or kept"
            " as found on the volume.",
            ["way"],
        )
        self.file_failures = counter(
            "cartd_file_failures_total", "Files that could not be staged, by problem.", ["problem"]
        )
        self.lease_losses = counter(
            "cartd_lease_losses_total",
            "Carts that this process stopped staging, as they were deleted or another process took"
            " them over.",
        )

        # The archive
        self.archive_requests = fast_counter(
            "cartd_archive_requests_total",
            "Requests to the archive, by method and status; none: there was no response.",
            ["method", "code"],
        )
        self.archive_seconds = fast_histogram(
            "cartd_archive_request_seconds",
            "Time until the head of the archive's response, by method.",
            ["method"],
            buckets=SHORT,
        )
        self.archive_received = fast_counter(
            "cartd_archive_received_bytes_total", "Bytes of files received from the archive."
        )
        self.archive_unavailable = gauge(
            "cartd_archive_unavailable", "Whether carts wait for the archive, which is unavailable."
        )
        self.archive_unavailable_seconds = counter(
            "cartd_archive_unavailable_seconds_total", "Time for which it was."
        )
        self.slots_in_use = gauge(
            "cartd_connection_slots_in_use", "Requests to the archive in progress."
        )
        self.slots_limit = gauge(
            "cartd_connection_slots_limit", "Maximum number of requests in progress now."
        )
        self.slots_waiting = gauge(
            "cartd_connection_slots_waiting", "Requests that wait for a slot."
        )
        self.tape_files = gauge(
            "cartd_tape_files_waiting", "Files that are recalled from tape, of all processes."
        )
        self.recall_seconds = histogram(
            "cartd_tape_recall_seconds",
            "Time from the recall of a file until it was fetched.",
            buckets=LONG,
        )

        # Downloads
        self.downloads = gauge("cartd_downloads_in_progress", "Downloads in progress.")
        self.downloads_ended = counter(
            "cartd_downloads_total", "Downloads that have ended, by outcome.", ["outcome"]
        )
        self.sent = counter("cartd_sent_bytes_total", "Bytes of tars sent to clients.")
        self.first_byte_seconds = histogram(
            "cartd_download_first_byte_seconds",
            "Time from the request of a download until its first byte is sent.",
            buckets=SHORT,
        )
        self.event_streams = gauge("cartd_event_streams", "Open event streams.")

        # The volume
        self.volume_bytes = gauge(
            "cartd_volume_bytes",
            "Bytes of carts on the volume: written, or reserved and not written yet; of all"
            " processes.",
            ["use"],
        )
        self.volume_free = gauge(
            "cartd_volume_free_bytes", "Bytes free on the volume's file system."
        )
        self.volume_size = gauge("cartd_volume_size_bytes", "Size of the volume's file system.")
        self.volume_quota = gauge(
            "cartd_volume_quota_bytes", "The setting volume_quota; +Inf if there is none."
        )
        self.volume_reserve = gauge("cartd_volume_reserve_bytes", "The setting volume_reserve.")
        self.evictions = counter("cartd_evictions_total", "Carts evicted.")
        self.evicted_bytes = counter("cartd_evicted_bytes_total", "Bytes freed by evictions.")
        self.eviction_age = histogram(
            "cartd_eviction_age_seconds",
            "Time from the last use of a cart until its eviction.",
            buckets=AGES,
        )
        self.verified_files = counter(
            "cartd_verified_files_total",
            "Staged files compared with their hashes, by result.",
            ["result"],
        )
        self.dirty_rows = gauge(
            "cartd_dirty_rows",
            "Rows of staged files that may not have reached the disk, of all processes.",
        )

        # The database
        self.store_seconds = histogram(
            "cartd_store_seconds",
            "Time of queries and transactions, with the wait for a connection, by kind.",
            ["kind"],
            buckets=QUICK,
        )
        self.store_unavailable = gauge(
            "cartd_store_unavailable", "Whether the last read or write failed."
        )

        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Create the series with known labels: an increase from nothing to 1 is not seen."""
        for counter, values in (
            (self.carts_posted, POST_OUTCOMES),
            (self.carts_finished, CART_OUTCOMES),
            (self.files_staged, WAYS),
            (self.downloads_ended, DOWNLOAD_OUTCOMES),
            (self.verified_files, VERIFICATION_RESULTS),
        ):
            for value in values:
                counter.labels(value)
        for kind in STORE_KINDS:
            self.store_seconds.labels(kind)


UNEXPOSED = Metrics()
"""Where components count that are built without metrics, as those of the commands."""
