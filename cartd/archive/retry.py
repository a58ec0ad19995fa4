"""Retrying requests to the archive: how often, after which delays, and the final error.

The delays are those of :mod:`cartd.backoff`; attempts wait for the circuit breaker and a slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.archive.circuit_breaker import CircuitBreaker
from cartd.archive.concurrency_limit import AdaptiveLimit
from cartd.archive.responses import ArchiveError
from cartd.backoff import delays, with_retry_after
from cartd.checksum import Mismatch
from cartd.deferreds.fair_semaphore import FairSemaphore
from cartd.errors import CartdError, escape, is_path_error, problem_of
from cartd.model import Cart, CartFile, FileFailure

T = TypeVar("T")
log = Logger()


class FileFailed(CartdError):
    """A file could not be staged; carries the facts for the store.

    A ``mismatch`` of an earlier attempt is part of the cause: it tells more than the last failure.
    """

    def __init__(self, file: CartFile, cause: Exception, mismatch: Mismatch | None = None) -> None:
        self.cause = str(cause) if mismatch is None else f"{mismatch}; last attempt: {cause}"
        super().__init__(
            f"Failed to stage {file.path} (archive id {file.archive_id}): {self.cause}"
        )
        self.problem = problem_of(cause if mismatch is None else mismatch)
        self.facts = FileFailure(file.position, self.cause, self.problem)
        self.is_volume_error = isinstance(cause, OSError) and not is_path_error(cause)
        """Whether the volume failed, so that other files would fail, too."""


class RetryPolicy:
    """Attempts each request up to ``max_attempts`` times; attempts during an outage do not count.

    Each attempt holds a slot of the semaphore.  Corrupt files are reported to
    ``concurrency_limit``.
    """

    def __init__(
        self,
        max_attempts: int,
        semaphore: FairSemaphore,
        breaker: CircuitBreaker,
        concurrency_limit: AdaptiveLimit,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        self._max_attempts = max_attempts
        self._semaphore = semaphore
        self._breaker = breaker
        self._concurrency_limit = concurrency_limit
        self._clock = clock
        self._random = random
        self._queued: Counter[int] = Counter()
        """How many requests of a cart, by its id, wait for a slot."""
        self._last_request_ended: dict[int, float] = {}
        """When the last request of a cart, by its id, ended or failed."""

    def begin(self, cart_id: int) -> None:
        """Start to measure the cart's idle time: it has requests to send."""
        self._last_request_ended[cart_id] = self._clock.seconds()

    def end(self, cart_id: int) -> None:
        self._last_request_ended.pop(cart_id, None)

    def idle(self, cart_id: int) -> float:
        """For how many seconds no request was sent for the cart, although nothing prevented it."""
        ended_at = self._last_request_ended.get(cart_id)
        if ended_at is None or self._queued[cart_id] or not self._breaker.is_closed:
            return 0.0
        return self._clock.seconds() - ended_at

    async def call(self, cart: Cart, file: CartFile, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``attempt``, retried until it succeeds.

        :raises FileFailed: all attempts failed, or the failure is permanent.
        :raises OutageTooLong: the archive was unavailable for too long.
        """
        pauses = delays(self._max_attempts, self._random)
        successes = paused_at = self._breaker.successes
        reasons: list[str] = []
        mismatch: Mismatch | None = None
        while True:
            try:
                answer = await self._attempt_once(cart, file, attempt)
            except OSError as error:
                raise FileFailed(file, error) from error
            except Mismatch as error:
                self._report_mismatch(reasons, str(error))
                failure: ArchiveError | Mismatch = error
                mismatch = error
            except ArchiveError as error:
                failure = error
            else:
                self._breaker.record_success(file.archive_id)
                return answer
            if await self._wait_out_outage(cart, file, failure):
                pauses = delays(self._max_attempts, self._random)
                continue
            pause = next(pauses, None)
            if pause is None and await self._wait_out_unavailability(
                cart, file, failure, paused_at
            ):
                pauses = delays(self._max_attempts, self._random)
                continue
            paused_at = self._breaker.successes
            if pause is not None and getattr(failure, "retryable", True):
                log.info("Retrying {path}: {failure}", path=escape(file.path), failure=failure)
                await self._pause(pause, failure)
            elif await self._wait_out_archive_fault(cart, file, failure, successes):
                pauses = delays(self._max_attempts, self._random)
            else:
                transient = isinstance(failure, ArchiveError) and failure.retryable
                raise FileFailed(file, failure, mismatch if transient else None) from failure

    async def ask_once(
        self, key: Hashable, owner: str | None, attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """Return the result of one attempt that no cart waits for.

        It holds a slot, in turn with the requests of carts: ``key`` stands for a cart of ``owner``.
        A failure is not retried, and says nothing to the breaker.

        :raises ArchiveError: the attempt failed, or the archive is unavailable.
        """
        if self._breaker.is_closed:
            async with self._semaphore.slot(key, owner):
                if self._breaker.is_closed:
                    return await attempt()
        raise ArchiveError("carts wait for it", retryable=True, outage=True)

    async def _attempt_once(
        self, cart: Cart, file: CartFile, attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """Attempt once while the archive is available.  Holds no slot while waiting for that."""
        while True:
            await self._breaker.wait(cart.id, file.archive_id)
            await self._acquire_slot(cart)
            try:
                if self._breaker.is_closed:
                    return await attempt()
            except ArchiveError as error:
                # Before the slot is released, so that no other request fails in the same way.
                if error.unavailable:
                    self._breaker.record_unavailable(file.archive_id, error)
                elif error.outage:
                    self._breaker.trip(file.archive_id, error)
                raise
            finally:
                self._release_slot(cart)

    async def _acquire_slot(self, cart: Cart) -> None:
        self._queued[cart.id] += 1
        try:
            await self._semaphore.acquire(cart.id, cart.owner)
        finally:
            self._queued[cart.id] -= 1
            if not self._queued[cart.id]:
                del self._queued[cart.id]

    def _release_slot(self, cart: Cart) -> None:
        if cart.id in self._last_request_ended:
            self._last_request_ended[cart.id] = self._clock.seconds()
        self._semaphore.release()

    async def _wait_out_outage(
        self, cart: Cart, file: CartFile, failure: ArchiveError | Mismatch
    ) -> bool:
        """Return True if the failure was part of an outage, after waiting until that was over."""
        if isinstance(failure, Mismatch) or not failure.outage:
            return False
        return await self._breaker.wait(cart.id, file.archive_id, failed=True)

    async def _wait_out_unavailability(
        self, cart: Cart, file: CartFile, failure: ArchiveError | Mismatch, successes: int
    ) -> bool:
        """Trip the breaker if the last attempt also got 502/503/504.

        Return whether it was an outage.

        Until then only this file waits.  It is a failure of the file, not of the archive, if other
        files were answered since the breaker's count was ``successes``, at the attempt before.
        """
        if isinstance(failure, Mismatch) or not failure.unavailable:
            return False
        if self._breaker.succeeded_since(successes, other_than=file.archive_id):
            return False
        self._breaker.trip(file.archive_id, failure)
        return await self._wait_out_outage(cart, file, failure)

    async def _wait_out_archive_fault(
        self, cart: Cart, file: CartFile, failure: ArchiveError | Mismatch, successes: int
    ) -> bool:
        """Return True if the archive failed for every file, after waiting until it recovered.

        False for outages, which were handled before, and for failures of this file alone.
        """
        if isinstance(failure, Mismatch) or failure.outage:
            return False
        if not (failure.retryable or failure.missing):
            return False
        return await self._breaker.caused_failure(cart.id, file.archive_id, failure, successes)

    async def _pause(self, pause: float, failure: Exception) -> None:
        await deferLater(
            self._clock, with_retry_after(pause, getattr(failure, "retry_after", None))
        )

    def _report_mismatch(self, reasons: list[str], reason: str) -> None:
        """Report a corrupt file, and whether it is corrupt in the same way as the first time."""
        if not reasons and not self._concurrency_limit.record_corrupt_file():
            reason = ""
        reasons.append(reason)
        if len(reasons) == 2 and reasons[0] == reason:
            self._concurrency_limit.record_same_corruption()
