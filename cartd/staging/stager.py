"""Starts, resumes and aborts the staging of carts by this process, and holds their leases.

:class:`FairShare` divides what the carts in staging share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.archive.retry import FileFailed
from cartd.backoff import Backoff
from cartd.deferreds.tasks import Periodic, with_timeout
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import (
    CartdError,
    DatabaseUnavailable,
    FileUnreadable,
    LeaseLost,
    Problem,
    Unavailable,
    VolumeDamaged,
    VolumeUnavailable,
    escape,
    problem_of,
)
from cartd.integrity.recovery import Recovery
from cartd.integrity.repair import invalidate_unreadable
from cartd.metrics import UNEXPOSED, Metrics
from cartd.model import Cart, FileFailure
from cartd.staging import StagingContext
from cartd.staging.paces import SAMPLE_INTERVAL, PaceRecorder
from cartd.staging.pipeline import StagingPipeline
from cartd.store import Store
from cartd.store.leases import LeaseObserver
from cartd.tracing import current, current_cart, staging_context
from cartd.volume.locks import ProcessLocks

LEASE_SECONDS = 60.0
"""Seconds until a lease expires unless it is renewed."""
MAX_BACKOFF = 300.0
"""Seconds; a cart is retried at once if the database has not failed for twice as long."""
CLAIM_INTERVAL = 5.0
"""Seconds between two scans for carts without a lease; leases are renewed as often."""
STOP_STEP_TIMEOUT = 5.0
"""Maximum seconds of each step of a stop."""
WATCHDOG_INTERVAL = 60.0
STALL_TIMEOUT = 900.0
"""Seconds without progress after which a cart is restarted: three times the longest pause.  The
archive's stall timeout is added."""
FLUSH_INTERVAL = 1.0
"""Seconds after which staged files are recorded at the latest."""

log = Logger()


class FairShare:
    """Shares of the carts in staging: users get equal shares, and the carts of a user, too."""

    def __init__(self) -> None:
        self._owners: dict[int, str | None] = {}
        self._carts: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, cart_id: int, owner: str | None) -> None:
        """Count the cart, unless it is counted already."""
        if cart_id not in self._owners:
            self._owners[cart_id] = owner
            self._carts[owner] += 1

    def remove(self, cart_id: int) -> None:
        """Stop counting the cart, if it was counted."""
        if cart_id in self._owners:
            owner = self._owners.pop(cart_id)
            self._carts[owner] -= 1
            if not self._carts[owner]:
                del self._carts[owner]

    def divisor(self, owner: str | None, *, unknown_owners: int = 0) -> int:
        """Return the number that a shared amount is divided by for a cart of ``owner``.

        ``unknown_owners`` is the number of further carts whose owners are not known yet; they count
        as carts of ``owner``.
        """
        others = len(self._carts) - (owner in self._carts)
        return (others + 1) * max(self._carts[owner] + unknown_owners, 1)


class Stager:
    """Stages carts, each under a lease in the store, which only one process holds at a time.

    The store is the only queue: :meth:`begin` just saves a new cart the wait until the next scan.
    """

    def __init__(
        self,
        store: Store,
        process_locks: ProcessLocks,
        recovery: Recovery,
        threads: ThreadRunner,
        clock: IReactorTime,
        now: Callable[[], float],
        *,
        stall_timeout: float = STALL_TIMEOUT,
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        """``clock`` is for timers; ``now`` returns Unix time, for the dates in the store.

        A cart without progress for ``stall_timeout`` seconds is restarted.
        """
        self._store = store
        self._process_locks = process_locks
        self._recovery = recovery
        self._threads = threads
        self._clock = clock
        self._now = now
        self._stall_timeout = stall_timeout
        self._metrics = metrics
        self._context: StagingContext | None = None
        self._claim_unfinished = False
        self._running: dict[int, Deferred[None]] = {}
        self._pipelines: dict[int, StagingPipeline] = {}
        self._fair_share = FairShare()
        self._lease_observer = LeaseObserver(LEASE_SECONDS)
        self._dead: set[str] = set()
        self._backoff: Backoff[int] = Backoff(
            clock.seconds,
            first=CLAIM_INTERVAL,
            longest=MAX_BACKOFF,
            free_failures=1,
            forget_after=2 * MAX_BACKOFF,
        )
        """For carts whose staging is interrupted by database errors again and again."""
        self._paces = PaceRecorder(store.progress, process_locks.name, clock, now)
        self._loops: list[Periodic] = []

    def start(self, context: StagingContext, *, claim_unfinished: bool = True) -> None:
        """Start to stage; with ``claim_unfinished``, also carts that other processes have left.

        The process lock must be held before, and until :meth:`stop` has returned.
        """
        self._context = context
        self._claim_unfinished = claim_unfinished
        self._loops = [
            Periodic(self._clock, FLUSH_INTERVAL, self._flush),
            Periodic(self._clock, SAMPLE_INTERVAL, self._record_paces),
            Periodic(self._clock, CLAIM_INTERVAL, self._claim_carts),
            Periodic(self._clock, WATCHDOG_INTERVAL, self._restart_stalled),
        ]
        for loop in self._loops:
            loop.start()

    async def stop(self) -> None:
        """Stop staging and release all leases; other processes, or the next start, resume."""
        self._context = None
        for loop in self._loops:
            with suppress(TimeoutError):  # the disk hangs
                await self._with_timeout(loop.stop())
        busy = bool(self._running)
        try:
            # A cancelled pipeline records what is staged; one that is cancelled twice does not.
            await self._with_timeout(self._cancel(list(self._running)))
            if busy:
                await self._with_timeout(self._store.leases.release_all(self._process_locks.name))
        except (Unavailable, TimeoutError) as error:
            # Other processes see by the lock file that this one has ended.
            log.warn("Leases not released: {error}", error=error)

    def _with_timeout(self, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        return with_timeout(STOP_STEP_TIMEOUT, Deferred.fromCoroutine(work), self._clock)

    def count(self) -> int:
        """How many carts this process is staging."""
        return len(self._running)

    def share_divisor(self, owner: str | None) -> int:
        """Return the number by which a cart of ``owner`` divides resources that carts share."""
        return self._fair_share.divisor(owner, unknown_owners=self.count() - len(self._fair_share))

    def begin(self, cart_id: int, *, resumed: bool = True) -> None:
        """Stage the cart, unless it is being staged; the outcome is recorded in the store.

        ``resumed``: parts of it may be on the volume already.  Pollers call this repeatedly: a call
        must not keep memory for as long as the cart is staged.
        """
        if cart_id in self._running or self._context is None:
            return
        job = Deferred.fromCoroutine(self._stage(self._context, cart_id, resumed))
        self._running[cart_id] = job
        job.addBoth(self._ended, cart_id)

    async def abort(self, cart_id: int) -> None:
        """Stop staging the cart, which has been deleted."""
        await self._cancel([cart_id])

    async def _cancel(self, cart_ids: list[int]) -> None:
        jobs = [self._running[cart_id] for cart_id in cart_ids if cart_id in self._running]
        for job in jobs:
            job.cancel()
        await DeferredList(jobs)

    def _ended(self, result: Any, cart_id: int) -> None:
        self._running.pop(cart_id, None)
        self._pipelines.pop(cart_id, None)
        self._fair_share.remove(cart_id)
        if isinstance(result, Failure) and not result.check(CancelledError):
            log.failure("{cart}: staging ended unexpectedly", result, cart=current_cart(cart_id))

    async def _stage(self, context: StagingContext, cart_id: int, resumed: bool) -> None:
        holder = self._process_locks.name
        try:
            now = self._now()
            cart = await self._store.leases.claim(
                cart_id, holder, now=now, until=now + LEASE_SECONDS, dead=self._dead
            )
            if cart is None:
                return
            # Within this coroutine, which all others that stage the cart are part of.
            current.set(staging_context(cart))
            log.info(
                "{cart}: staging {what}, {staged} of {total} files are on the volume",
                cart=cart,
                what="continues" if resumed else "begins",
                staged=cart.files_staged,
                total=cart.files_total,
            )
            if resumed:
                cart = await self._recovery.take_over(cart, holder)
            try:
                missing = await self._run(context, cart, resumed)
            except FileUnreadable:
                raise
            except VolumeDamaged as error:
                log.warn(
                    "{cart}: staged again: {error}",
                    cart=current_cart(cart_id),
                    error=error,
                )
                # Staged files have been removed meanwhile: retry once.
                again = await self._store.carts.cart(cart_id) or cart
                missing = await self._run(context, again, True)
            self._log_ready(cart, missing)
            self._metrics.staging_seconds.observe(max(self._now() - cart.created, 0.0))
        except VolumeUnavailable:
            await self._release_lease(cart_id)
        except (LeaseLost, Unavailable) as error:
            # Another process has taken over the cart, or this one resumes it later.
            self._log_interrupted(cart_id, error)
        except (CartdError, OSError) as error:
            await self._handle_failure(context, cart_id, error)
        except CancelledError:
            raise
        except Exception as error:
            log.failure("{cart}: staging failed", cart=current_cart(cart_id))
            message = escape(f"Internal error: {type(error).__name__}: {error}")
            await self._fail(cart_id, message, Problem.INTERNAL_ERROR)

    def _log_ready(self, cart: Cart, missing: int) -> None:
        if missing:
            log.warn(
                "{cart} is ready, but partial: {missing} of {total} files are missing",
                cart=cart,
                missing=missing,
                total=cart.files_total,
            )
        else:
            log.info("{cart} is ready", cart=cart)
        self._metrics.carts_finished.labels("partial" if missing else "complete").inc()

    def _log_interrupted(self, cart_id: int, error: CartdError) -> None:
        if isinstance(error, LeaseLost):
            self._metrics.lease_losses.inc()
        if isinstance(error, DatabaseUnavailable):
            # Logged once for all carts.  A statement that fails for this cart alone may fail each
            # time: back off, so that its files are not fetched every few seconds.
            self._backoff.failed(cart_id)
        else:
            log.warn(
                "{cart}: staging interrupted: {error}",
                cart=current_cart(cart_id),
                error=error,
            )

    async def _run(self, context: StagingContext, cart: Cart, resumed: bool) -> int:
        """Stage the cart; return how many of its files are missing."""
        pipeline = StagingPipeline(context, cart, self._process_locks.name, resumed=resumed)
        self._pipelines[cart.id] = pipeline
        self._fair_share.add(cart.id, cart.owner)
        await pipeline.run()
        return pipeline.files_failed

    async def _handle_failure(
        self, context: StagingContext, cart_id: int, error: CartdError | OSError
    ) -> None:
        """Put the cart in error, unless the volume is unavailable: then it is resumed later."""
        try:
            await context.volume.check()
        except VolumeUnavailable:
            await self._release_lease(cart_id)
            return
        if isinstance(error, FileFailed):
            await self._fail(cart_id, str(error), error.problem, error.facts)
        elif isinstance(error, FileUnreadable):
            await self._invalidate_unreadable(cart_id, error)
            await self._fail(cart_id, str(error), error.problem)
        else:
            await self._fail(cart_id, str(error), problem_of(error))

    async def _invalidate_unreadable(self, cart_id: int, error: FileUnreadable) -> None:
        try:
            await invalidate_unreadable(self._store, cart_id, self._process_locks.name, error.path)
        except (LeaseLost, Unavailable) as failure:
            log.warn(
                "{cart}: lost files not recorded: {error}",
                cart=current_cart(cart_id),
                error=failure,
            )

    async def _release_lease(self, cart_id: int) -> None:
        """Release the lease so that a process with a working volume can take over.

        The missing volume has been logged.
        """
        try:
            await self._store.leases.release(self._process_locks.name, cart_id)
        except Unavailable as error:
            log.warn(
                "{cart}: lease not released: {error}",
                cart=current_cart(cart_id),
                error=error,
            )

    async def _fail(
        self, cart_id: int, message: str, problem: Problem, failed: FileFailure | None = None
    ) -> None:
        log.warn("{cart} is in error: {message}", cart=current_cart(cart_id), message=message)
        pipeline = self._pipelines.get(cart_id)
        try:
            known = await self._reconcile_volume(cart_id)
            await self._store.progress.record_error(
                cart_id,
                self._process_locks.name,
                message,
                position=None if failed is None else failed.position,
                file_error="" if failed is None else failed.error,
                problem=problem,
                now=self._now(),
                volume_bytes=None if pipeline is None else pipeline.tar_bytes,
                rest_unknown=not known,
            )
            self._metrics.carts_finished.labels("failed").inc()
        except (LeaseLost, Unavailable) as error:
            log.warn(
                "{cart}: error not recorded: {error}",
                cart=current_cart(cart_id),
                error=error,
            )

    async def _reconcile_volume(self, cart_id: int) -> bool:
        """Reconcile the cart's files on the volume and the store; return whether that succeeded."""
        pipeline = self._pipelines.get(cart_id)
        if pipeline is None:
            return False
        try:
            # A process that has taken over the cart may have unrecorded files there.
            if cart_id in await self._store.leases.renew(
                self._process_locks.name, self._now() + LEASE_SECONDS
            ):
                await pipeline.reconcile_volume()
                return True
        except Unavailable:
            raise  # the cart is staged again: files on the volume must not go uncounted
        except (CartdError, OSError) as error:
            log.warn(
                "{cart}: leftover files neither recorded nor removed: {error}",
                cart=current_cart(cart_id),
                error=error,
            )
        except CancelledError:
            raise
        except Exception:
            # In any case the cart has to end in error.
            log.failure(
                "{cart}: leftover files neither recorded nor removed",
                cart=current_cart(cart_id),
            )
        return False

    # Periodic work

    async def _flush(self) -> None:
        for cart_id, pipeline in list(self._pipelines.items()):
            try:
                await pipeline.flush()
            except LeaseLost:
                await self._abort_all([cart_id])

    async def _record_paces(self) -> None:
        if self._context is not None:
            await self._paces.record(
                {cart_id: pipeline.sample() for cart_id, pipeline in self._pipelines.items()},
                available=self._context.breaker.is_closed,
            )

    async def _restart_stalled(self) -> None:
        """Watchdog: restart carts without progress, in case of a bug in cartd."""
        for cart_id, pipeline in list(self._pipelines.items()):
            if pipeline.idle() >= self._stall_timeout and cart_id in self._running:
                log.error(
                    "{cart}: no progress for {seconds:.0f} s, restarting its staging;"
                    " please report this line",
                    cart=current_cart(cart_id),
                    seconds=pipeline.idle(),
                )
                self._running[cart_id].cancel()

    async def _renew(self) -> None:
        """Renew the leases; abort carts whose lease is lost."""
        claimed = list(self._pipelines)
        held = await self._store.leases.renew(self._process_locks.name, self._now() + LEASE_SECONDS)
        await self._abort_all([cart_id for cart_id in claimed if cart_id not in held])

    async def _abort_all(self, cart_ids: list[int]) -> None:
        for cart_id in cart_ids:
            if cart_id in self._running:
                self._metrics.lease_losses.inc()
                log.warn(
                    "{cart} was deleted or taken over by another process",
                    cart=current_cart(cart_id),
                )
        await self._cancel(cart_ids)

    async def _claim_carts(self) -> None:
        """Renew leases, find dead processes, then claim every unfinished cart without a lease.

        Files that dead processes have not synced come first: no cart may be linked to them.  Carts
        with a valid lease are not claimed: each attempt is a transaction.  Without the volume
        nothing can be staged, and no lock be checked.
        """
        await self._renew()
        if self._context is not None:
            await self._context.volume.check()
        ends = await self._store.leases.holders()
        names = {*ends, *await self._store.durability.dirty_holders()}
        dead = await self._threads.run(self._process_locks.dead_among, names)
        self._dead = dead | self._lease_observer.expired(ends, self._clock.seconds())
        if self._claim_unfinished:
            holder = self._process_locks.name
            await self._recovery.recover(holder, self._dead)
            for cart_id in await self._store.leases.claimable(
                holder, now=self._now(), dead=self._dead
            ):
                if not self._backoff.is_waiting(cart_id):
                    self.begin(cart_id)
