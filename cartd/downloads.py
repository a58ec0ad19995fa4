"""A ready cart on its way to a client: found, pinned, planned and, if damaged, given back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.disposition import default_filename, top_folder
from cartd.errors import CartdError, CartNotFound, Unavailable, VolumeAway
from cartd.integrity.repair import Repair
from cartd.model import UNFINISHED, Asker, Cart, CartStatus
from cartd.plans import Plans
from cartd.sending.reader import SendingReader
from cartd.sending.tree_reader import TarReader, TreeReader
from cartd.store import Store
from cartd.uses import Uses
from cartd.volume import Volume

USE_TOLD_AFTER = 60.0
"""Seconds since the last use that the store knows, after which a new one is told at once."""
USE_TOLD_WITHIN = 1.0
"""Seconds that the telling may take; a download is not refused because the store cannot write."""

log = Logger()


class NotReady(CartdError):
    """The cart is not ready for download yet."""

    code = 202

    def __init__(self, cart: Cart) -> None:
        super().__init__("The cart is not ready for download.")
        self.cart = cart


@dataclass(frozen=True, slots=True)
class Download:
    """A tar of a known length that can be read from any of its bytes on.

    Equal ``etag`` means equal bytes.  ``last_modified`` is Unix seconds: a cart's bytes
    never change after its posting.
    """

    cart: Cart
    name: str
    """The tar's file name; without its ending, the top folder inside."""
    length: int
    etag: str
    last_modified: float
    reader: Callable[[int, int], SendingReader]
    """Gives a reader of the half-open range of bytes; it must be closed."""


class Downloads:
    """Opens carts for reading; what is open is pinned and cannot be evicted."""

    def __init__(
        self,
        store: Store,
        volume: Volume,
        plans: Plans,
        uses: Uses,
        repair: Repair,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._volume = volume
        self._plans = plans
        self._uses = uses
        self._repair = repair
        self._clock = clock
        self._now = now
        self._given_back: dict[int, Deferred[CartdError]] = {}
        """By cart id, what is under way."""

    @asynccontextmanager
    async def open(self, asker: Asker, uid: str, name: str | None) -> AsyncIterator[Download]:
        """The newest cart of ``uid`` that is there for ``asker``, pinned meanwhile.

        It is a tar called ``name``.  Without a name it is called after the time of its posting, not
        of the request: who resumes a download goes on with the same tar.

        :raises CartNotFound: there is none.
        :raises NotReady: it is still being staged.
        :raises CartdError: it is in error; the message is the cause.
        """
        cart = _check_ready(await self._store.newest_for(asker, uid))
        with self._uses.pin(cart.id):
            # What was deleted before the pin may already be gone: look again under the pin.
            cart = _check_ready(await self._store.cart(cart.id))
            if cart.bytes_total is None:
                cart = await self._adopted(cart)
            await self._note_use(cart)
            try:
                name = name or default_filename(cart.created)
                yield await (self._bundled(cart, name) if cart.bundle else self._tree(cart, name))
            finally:
                self._uses.note(cart.id, self._now())

    async def _note_use(self, cart: Cart) -> None:
        """Remember the use, and tell the store: the commands see no pins, but that."""
        now = self._now()
        self._uses.note(cart.id, now)
        if now - cart.used > USE_TOLD_AFTER:
            telling = Deferred.fromCoroutine(self._store.touch({cart.id: now}))
            telling.addTimeout(USE_TOLD_WITHIN, self._clock)
            with suppress(TimeoutError, Unavailable):  # it is told later, with all others
                await telling

    async def _tree(self, cart: Cart, name: str) -> Download:
        plan = await self._plans.of_ready(cart, top_folder(name))
        tree, root = self._volume.tree(cart), self._volume.root
        return Download(
            cart,
            name,
            plan.length,
            plan.etag,
            cart.created,
            lambda start, stop: TreeReader(
                tree, plan.segments(start, stop), self._volume.kept(cart), root=root
            ),
        )

    async def _bundled(self, cart: Cart, name: str) -> Download:
        path, root = self._volume.tar(cart), self._volume.root
        # The tar of a fingerprinted cart is a function of its plan; one that Pacifica
        # wrote is known only by its row and its size, until it is staged anew.
        if cart.fingerprint is None:
            length = cart.volume_bytes
            etag = f'"{sha256(f"{cart.id}/{cart.updated}/{length}".encode()).hexdigest()}"'
        else:
            plan = await self._plans.of_ready(cart, cart.uid)
            length, etag = plan.length, plan.etag
        return Download(
            cart,
            name,
            length,
            etag,
            cart.created,
            lambda start, stop: TarReader(
                path, length, start, stop, self._volume.kept(cart), root=root
            ),
        )

    async def _adopted(self, cart: Cart) -> Cart:
        """A ready cart of Pacifica's, measured; staged again if it is not on the volume.

        :raises NotReady: so it is.
        """
        if not await self._repair.adopt(cart):
            raise await self.damaged(cart)
        return _check_ready(await self._store.cart(cart.id))

    def damaged(self, cart: Cart, unreadable: str | None = None) -> Deferred[CartdError]:
        """Have the cart given back, once, whether or not the clients that found out stay.

        ``unreadable`` is the path of a file whose bytes the disk does not give, if there is one.
        Fires when that is done, well or not, with what a client is to be told.
        """
        told: Deferred[CartdError] = Deferred()
        job = self._given_back.get(cart.id)
        if job is None:
            job = Deferred.fromCoroutine(self._give_back(cart, unreadable))
            if not job.called:
                self._given_back[cart.id] = job

        def tell(ended: CartdError | Failure) -> CartdError | Failure:
            told.callback(_restaged(cart) if isinstance(ended, Failure) else ended)
            return ended

        job.addBoth(tell)
        return told

    async def check(self, cart: Cart) -> None:
        """Raises what :meth:`open` raises, as things are now, if the cart is not ready any more."""
        _check_ready(await self._store.cart(cart.id))

    async def _give_back(self, cart: Cart, unreadable: str | None) -> CartdError:
        try:
            await self._repair.give_back(cart, unreadable=unreadable)
        except CancelledError:
            raise
        except VolumeAway as error:
            return error  # it is not the cart that is damaged
        except CartdError as error:
            log.warn("Cannot give back cart {id}: {error}", id=cart.id, error=error)
        except Exception:
            log.failure("Cannot give back cart {id}", id=cart.id)
        finally:
            self._given_back.pop(cart.id, None)
        return _restaged(cart)

    async def stop(self) -> None:
        """Cancel what is under way on its own."""
        jobs = list(self._given_back.values())
        for job in jobs:
            job.cancel()
        await DeferredList(jobs, consumeErrors=True)


def _restaged(cart: Cart) -> NotReady:
    """What a client is told that has found ``cart`` damaged."""
    return NotReady(replace(cart, status=CartStatus.STAGING))


def _check_ready(cart: Cart | None) -> Cart:
    if cart is None or cart.status == CartStatus.DELETED:
        raise CartNotFound("The cart does not exist or has already been deleted")
    if cart.status in UNFINISHED:
        raise NotReady(cart)
    if cart.status == CartStatus.ERROR:
        raise CartdError(cart.error)
    return cart
