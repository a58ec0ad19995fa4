"""Which carts are staged by this process: begun, taken up, dropped, stopped."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.errors import CartdError, LeaseLost, Unavailable
from cartd.holders import Holders
from cartd.patience import FileFailed
from cartd.periodic import Periodic
from cartd.staging import Staging, Tools
from cartd.store import Store
from cartd.threads import RunsInThread

LEASE = 60.0
"""Seconds for which a lease holds unless it is renewed."""
TAKE_UP_EVERY = 5.0
"""Seconds between two looks for carts that nobody stages; leases are renewed as often."""
FLUSH_EVERY = 1.0
"""Seconds after which the store knows at the latest what has been staged."""

log = Logger()


class Stager:
    """Stages carts, each under a lease in the store that no two processes hold at once.

    What is to be staged is known to the store alone: :meth:`begin` only spares a new cart
    the wait until the next look around.
    """

    def __init__(
        self, store: Store, holders: Holders, threads: RunsInThread, clock: IReactorTime
    ) -> None:
        self._store = store
        self._holders = holders
        self._threads = threads
        self._clock = clock
        self._tools: Tools | None = None
        self._takes_up = False
        self._running: dict[int, Deferred[None]] = {}
        self._stagings: dict[int, Staging] = {}
        self._dead: set[str] = set()
        self._loops: list[Periodic] = []

    def start(self, tools: Tools, *, take_up: bool = True) -> None:
        """Begin to stage; with ``take_up``, also what others have left unfinished."""
        self._holders.start()
        self._tools = tools
        self._takes_up = take_up
        self._loops = [
            Periodic(self._clock, FLUSH_EVERY, self._flush),
            Periodic(self._clock, TAKE_UP_EVERY, self._look_around),
        ]
        for loop in self._loops:
            loop.start()

    async def stop(self) -> None:
        """Stop staging and let go of all leases; others, or the next start, take up."""
        self._tools = None
        for loop in self._loops:
            await loop.stop()
        carts = list(self._running)
        await self._cancel(carts)
        try:
            for cart_id in carts:
                await self._store.release(cart_id, self._holders.name)
        except Unavailable as error:
            log.warn("Leases are left to expire: {error}", error=error)
        self._holders.stop()

    def count(self) -> int:
        """How many carts this process is staging."""
        return len(self._running)

    def begin(self, cart_id: int, *, resumed: bool = True) -> Deferred[None]:
        """Stage the cart; fires when it is ready, in error or somebody else's.

        ``resumed`` says that parts of it may be on the volume already.
        """
        if cart_id not in self._running and self._tools is not None:
            job = Deferred.fromCoroutine(self._stage(self._tools, cart_id, resumed))
            self._running[cart_id] = job
            job.addBoth(self._ended, cart_id)
        ended: Deferred[None] = Deferred()
        if cart_id in self._running:
            self._running[cart_id].addBoth(lambda _: ended.callback(None))
        else:
            ended.callback(None)
        return ended

    async def drop(self, cart_id: int) -> None:
        """Stop staging the cart, which has been deleted."""
        await self._cancel([cart_id])

    async def _cancel(self, cart_ids: list[int]) -> None:
        jobs = [self._running[cart_id] for cart_id in cart_ids if cart_id in self._running]
        for job in jobs:
            job.cancel()
        await DeferredList(jobs)

    def _ended(self, result: Any, cart_id: int) -> None:
        self._running.pop(cart_id, None)
        self._stagings.pop(cart_id, None)
        if isinstance(result, Failure) and not result.check(CancelledError):
            log.failure("Staging cart {id} ended unexpectedly", result, id=cart_id)

    async def _stage(self, tools: Tools, cart_id: int, resumed: bool) -> None:
        holder = self._holders.name
        try:
            now = self._clock.seconds()
            cart = await self._store.claim(
                cart_id, holder, now=now, until=now + LEASE, dead=self._dead
            )
            if cart is None:
                return
            self._stagings[cart_id] = Staging(tools, cart, holder, resumed=resumed)
            await self._stagings[cart_id].run()
            log.info("Cart {id} ({uid}) is ready", id=cart.id, uid=cart.uid)
        except (LeaseLost, Unavailable) as error:
            # The one has another holder now, the other will be taken up again.
            log.warn("Cart {id} is not staged on: {error}", id=cart_id, error=error)
        except FileFailed as error:
            await self._fail(cart_id, str(error), error.position, error.cause)
        except (CartdError, OSError) as error:
            await self._fail(cart_id, str(error))
        except CancelledError:
            raise
        except Exception as error:
            log.failure("Staging cart {id} failed", id=cart_id)
            await self._fail(cart_id, f"Internal error: {type(error).__name__}: {error}")

    async def _fail(
        self, cart_id: int, message: str, position: int | None = None, file_error: str = ""
    ) -> None:
        log.warn("Cart {id} is in error: {message}", id=cart_id, message=message)
        staging = self._stagings.get(cart_id)
        try:
            await self._store.record_error(
                cart_id,
                self._holders.name,
                message,
                position=position,
                file_error=file_error,
                now=self._clock.seconds(),
                volume_bytes=None if staging is None else staging.tar_bytes,
            )
        except (LeaseLost, Unavailable) as error:
            log.warn("The error of cart {id} is not recorded: {error}", id=cart_id, error=error)

    # What is done again and again

    async def _flush(self) -> None:
        for cart_id, staging in list(self._stagings.items()):
            try:
                await staging.flush()
            except LeaseLost:
                await self._cancel([cart_id])

    async def _renew(self) -> None:
        """Keep the leases; drop the carts whose lease somebody else has taken."""
        claimed = list(self._stagings)
        held = await self._store.renew(self._holders.name, self._clock.seconds() + LEASE)
        await self._cancel([cart_id for cart_id in claimed if cart_id not in held])

    async def _look_around(self) -> None:
        """Renew, see who has died, then take up every unfinished cart that nobody is staging."""
        await self._renew()
        names = await self._store.holders()
        self._dead = await self._threads.run(self._holders.dead_among, names)
        if self._takes_up:
            for cart in await self._store.unfinished():
                self.begin(cart.id)
