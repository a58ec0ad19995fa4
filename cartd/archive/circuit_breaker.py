"""Circuit breaker for the archive: stop requests while it is unavailable, and probe it instead.

Strategy: a request that fails as if the whole archive were unavailable trips the breaker.  While it
is open, files wait and only one request at a time is sent: a probe, which is a HEAD of another
file, if possible of one that succeeded before (half-open).  If the probe is answered, the failure
concerned its own file alone.  If not, there is an outage: the probe is repeated with growing
delays, each time for another of the waiting files, so that one file that always fails does not keep
the breaker open.  Any answer closes the breaker for all files.  How long a cart waits has a limit.

A response "unavailable" (502, 503, 504) may concern its file alone: the file is on tape, or its
disk is unavailable.  So such responses trip the breaker only when two files in a row got one,
unless the last such trip has just proved false; or when a file has used up its attempts.

An archive that answers every request with an error (500) is unavailable, too.  This shows only in
comparison with other files: such errors trip the breaker when a file has used up its attempts
(:meth:`CircuitBreaker.caused_failure`), and only a success closes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.archive.outage_status import OutageStatus, Waiters
from cartd.archive.responses import ArchiveError
from cartd.backoff import endless_delays, with_retry_after
from cartd.deferreds.fair_semaphore import FairSemaphore
from cartd.errors import CartdError
from cartd.model import Cart
from cartd.tracing import without_context

log = Logger()

UNAVAILABLE_THRESHOLD = 2
"""Number of different files with 502/503/504 in a row that trip the breaker."""
FALSE_TRIP_SECONDS = 30.0
"""After a false trip, such responses are ignored for this many seconds."""


class State(Enum):
    CLOSED = auto()
    """Requests are sent."""
    OPEN = auto()
    """Files wait for the next probe."""
    HALF_OPEN = auto()
    """Files wait, and a probe is chosen or sent."""


class _Event(Enum):
    TRIP = auto()
    """A request has failed as if the whole archive were unavailable."""
    PROBE = auto()
    """The first file waits, or the pause is over: early if a file comes that was not probed yet."""
    PAUSE = auto()
    """The next probe has to wait, if only for the next iteration of the reactor."""
    CLOSE = auto()
    """A probe was answered, or no file waits any more."""


_TRANSITIONS: Final = {
    (State.CLOSED, _Event.TRIP): State.OPEN,
    (State.OPEN, _Event.PROBE): State.HALF_OPEN,
    (State.HALF_OPEN, _Event.PAUSE): State.OPEN,
    (State.HALF_OPEN, _Event.CLOSE): State.CLOSED,
    (State.OPEN, _Event.CLOSE): State.CLOSED,
}
"""Any other event leaves the state as it is."""


@dataclass(slots=True)
class _Trip:
    """Why the breaker is not closed."""

    cause: ArchiveError
    since: float
    only_file: str | None
    """The only file that has failed so far; None if several have."""
    trips_on_errors: bool
    """Whether an error response keeps the breaker open as well."""
    confirmed: bool = False
    """Whether a probe has failed, too: there is an outage."""

    def matches(self, failure: ArchiveError) -> bool:
        return failure.outage or (self.trips_on_errors and failure.retryable)


class CircuitBreaker:
    """``probe`` sends a HEAD request for a file; a cart waits at most ``limit`` seconds.

    ``url`` is the archive's, for the log only: clients see the cause, but not the URL.
    """

    def __init__(
        self,
        probe: Callable[[str], Awaitable[object]],
        semaphore: FairSemaphore,
        probe_targets: ProbeTargets,
        status: OutageStatus,
        clock: IReactorTime,
        random: Callable[[], float],
        *,
        limit: float,
        url: str,
    ) -> None:
        self._send_probe = probe
        self._semaphore = semaphore
        self._probe_targets = probe_targets
        self._status = status
        self._clock = clock
        self._random = random
        self._url = url
        self._waiters = Waiters(status, clock, limit)
        self._state = State.CLOSED
        self._trip: _Trip | None = None
        """None while the breaker is closed."""
        self._probing: Deferred[None] | None = None
        """From the first file that waits until the breaker is closed."""
        self._probe_count = 0
        self._current: Deferred[None] | None = None
        """What the probing waits for: the end of a pause, or a response."""
        self._unavailable_files: set[str] = set()
        """The files that the archive has called unavailable since its last success."""
        self._ignored_until = -inf
        """Until then such responses concern their files alone."""

    @property
    def is_closed(self) -> bool:
        """Whether requests may be sent."""
        return self._state is State.CLOSED

    @property
    def successes(self) -> int:
        """How many successes there were so far, for :meth:`caused_failure`."""
        return self._probe_targets.successes

    def succeeded_since(self, successes: int, *, other_than: str) -> bool:
        """Whether, after so many successes, there was one for another file."""
        return self._probe_targets.succeeded_since(successes, other_than=other_than)

    def resume_cart(self, cart: Cart) -> None:
        """Begin to stage a cart, which may have waited before, in another process."""
        self._status.resume_cart(cart)

    def record_success(self, archive_id: str) -> None:
        """The archive has answered a request for this file."""
        self._probe_targets.record_success(archive_id)
        self._unavailable_files.clear()
        if self.is_closed:
            self._status.end()

    def record_unavailable(self, archive_id: str, failure: ArchiveError) -> None:
        """The archive has answered that it is unavailable, in a request for this file."""
        if self._trip is None:
            if self._clock.seconds() < self._ignored_until:
                return
            self._unavailable_files.add(archive_id)
            if len(self._unavailable_files) < UNAVAILABLE_THRESHOLD:
                return
            for other in self._unavailable_files - {archive_id}:
                self.trip(other, failure)
            self._unavailable_files.clear()
        self.trip(archive_id, failure)

    def trip(self, archive_id: str, failure: ArchiveError) -> None:
        """Open the breaker until a probe shows whether the archive is available."""
        if self._trip is None:
            now = self._clock.seconds()
            self._trip = _Trip(failure, now, archive_id, trips_on_errors=not failure.outage)
            self._advance(_Event.TRIP)
            return
        self._trip.trips_on_errors |= not failure.outage
        if archive_id != self._trip.only_file:
            self._trip.only_file = None

    async def wait(self, cart_id: int, archive_id: str, *, failed: bool = False) -> bool:
        """Wait until the breaker is closed; return whether there was an outage.

        ``failed``: a request for this file has tripped the breaker.

        :raises OutageTooLong: the cart has waited for as long as it may.
        """
        was_unavailable = False
        while not self.is_closed:
            was_unavailable |= await self._wait_for_release(cart_id, archive_id, failed)
            failed = False
        return was_unavailable

    async def caused_failure(
        self, cart_id: int, archive_id: str, failure: ArchiveError, successes: int
    ) -> bool:
        """Whether an outage, not the file, caused its last failure; return after the outage.

        The file is the cause if a request for another file succeeded after so many ``successes``,
        or if no other file is known that the archive should have.

        :raises OutageTooLong: the cart has waited for as long as it may.
        """
        if self.succeeded_since(successes, other_than=archive_id):
            return False
        if await self._probe_targets.find(other_than=archive_id) is None:
            return False
        self.trip(archive_id, failure)
        return await self.wait(cart_id, archive_id, failed=True)

    async def _wait_for_release(self, cart_id: int, archive_id: str, failed: bool) -> bool:
        released = self._waiters.join(cart_id, archive_id, failed=failed)
        if self._probing is None:
            self._advance(_Event.PROBE)
            self._probing = without_context(Deferred.fromCoroutine, self._probe_until_answered())
            self._probing.addErrback(self._probing_failed)
        elif self._state is State.OPEN and self._has_unprobed_file():
            self._advance(_Event.PROBE)
            self._interrupt()
        try:
            return await released
        finally:
            if not self._waiters:
                self._interrupt()

    # Probing

    async def _probe_until_answered(self) -> None:
        """Send probes until one is answered or no file waits."""
        assert self._trip is not None
        trip = self._trip
        self._probe_count = 0
        pauses = endless_delays(self._random)
        # Files that fail at the same time, and those that come next, join the waiters first.
        await self._sleep(0)
        target = await self._probe_targets.find(other_than=trip.only_file or "")
        pause = 0.0
        if target is None and not self._has_unprobed_file():
            pause = with_retry_after(next(pauses), trip.cause.retry_after)
        while True:
            await self._pause(pause)
            if not self._waiters:
                self._stop_probing()
                return
            self._advance(_Event.PROBE)
            archive_id = self._next_probe(target)
            try:
                failure = await self._probe(archive_id)
            except CancelledError:
                continue
            if failure is None or not trip.matches(failure):
                self._close()
                return
            self._confirm_outage(trip, archive_id, failure)
            pause = with_retry_after(next(pauses), failure.retry_after)
            if self._has_unprobed_file():
                pause = 0.0

    def _has_unprobed_file(self) -> bool:
        """Whether only one file has failed, and another one waits."""
        only_one = self._trip is not None and self._trip.only_file is not None
        return only_one and self._waiters.any_unprobed()

    def _next_probe(self, target: str | None) -> str:
        self._probe_count += 1
        if target is not None and self._probe_count % 2:
            return target
        return self._waiters.next_to_probe()

    async def _probe(self, archive_id: str) -> ArchiveError | None:
        async def send() -> None:
            async with self._semaphore.slot(self):
                await self._send_probe(archive_id)

        self._current = Deferred.fromCoroutine(send())
        try:
            await self._current
        except ArchiveError as failure:
            return failure
        finally:
            self._current = None
        self._probe_targets.record_success(archive_id)
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait while files do; fail those whose carts have reached the limit meanwhile."""
        end = self._clock.seconds() + seconds
        self._advance(_Event.PAUSE)
        while self._waiters and self._state is State.OPEN:
            left, trip = end - self._clock.seconds(), self._trip
            if trip is None or not trip.confirmed:
                await self._sleep(left)
            else:
                await self._sleep(min(left, self._waiters.seconds_left()))
                self._waiters.fail_expired(trip.cause)
            if self._clock.seconds() >= end:
                break

    async def _sleep(self, seconds: float) -> None:
        self._current = deferLater(self._clock, max(seconds, 0.0))
        try:
            await self._current
        except CancelledError:
            pass
        finally:
            self._current = None

    def _interrupt(self) -> None:
        if self._current is not None:
            self._current.cancel()

    # State changes

    def _advance(self, event: _Event) -> None:
        self._state = _TRANSITIONS.get((self._state, event), self._state)

    def _confirm_outage(self, trip: _Trip, archive_id: str, failure: ArchiveError) -> None:
        if archive_id != trip.only_file:
            trip.only_file = None
        if not trip.confirmed:
            trip.confirmed = True
            trip.cause = failure
            log.warn(
                "The archive is unavailable, carts wait for it: {cause} ({url})",
                cause=failure,
                url=self._url,
            )
            self._status.begin(str(failure), trip.since)

    def _close(self) -> None:
        was_unavailable = self._trip is not None and self._trip.confirmed
        self._unavailable_files.clear()
        if not was_unavailable:
            self._ignored_until = self._clock.seconds() + FALSE_TRIP_SECONDS
        self._log_end("The archive is available again after {length:.1f} s")
        self._trip = None
        self._probing = None
        self._advance(_Event.CLOSE)
        self._semaphore.slow_start()
        self._status.end()
        self._waiters.release(was_unavailable)

    def _stop_probing(self) -> None:
        """No file waits any more; the store keeps the status for the next process."""
        self._log_end(
            "No cart waits for the archive any more, which was unavailable for {length:.1f} s"
        )
        self._trip = None
        self._probing = None
        self._advance(_Event.CLOSE)
        self._status.forget_cause()

    def _log_end(self, text: str) -> None:
        if self._trip is not None and self._trip.confirmed:
            log.info(text, length=self._clock.seconds() - self._trip.since)

    def _probing_failed(self, failure: Failure) -> None:
        log.failure("Probing the archive failed", failure)
        self._close()


MAX_REMEMBERED = 2
"""Number of ids to remember.  Two, so that one is left when the other is the failing file."""


class StagedFiles(Protocol):
    """Knows the files that were staged; the store implements it."""

    async def recently_staged_file(self, other_than: str) -> str | None: ...


class ProbeTargets:
    """Files that the archive has: a probe for one of them shows whether it is available.

    Those that succeeded last are remembered; before the first success, the store is asked for one.
    """

    def __init__(self, store: StagedFiles) -> None:
        self._store = store
        self._succeeded: OrderedDict[str, int] = OrderedDict()
        self.successes = 0
        """How many successes there were so far."""

    def record_success(self, archive_id: str) -> None:
        """The archive has answered a request for this file."""
        self.successes += 1
        self._remember(archive_id, self.successes)

    def succeeded_since(self, successes: int, *, other_than: str) -> bool:
        """Whether, after so many successes, there was one for another file."""
        return any(at > successes for known, at in self._succeeded.items() if known != other_than)

    async def find(self, *, other_than: str) -> str | None:
        """Return the id of another file that the archive has, or had when it was staged, or None.

        If the database fails, none is known.
        """
        for known in reversed(self._succeeded):
            if known != other_than:
                return known
        try:
            known_to_store = await self._store.recently_staged_file(other_than)
        except CartdError as error:
            log.warn("Cannot look up a file to probe the archive with: {error}", error=error)
            return None
        if known_to_store is not None:
            self._remember(known_to_store, 0)
        return known_to_store

    def _remember(self, archive_id: str, at: int) -> None:
        self._succeeded[archive_id] = at
        self._succeeded.move_to_end(archive_id)
        if len(self._succeeded) > MAX_REMEMBERED:
            self._succeeded.popitem(last=False)
