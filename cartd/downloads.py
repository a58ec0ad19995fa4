"""A ready cart on its way to a client: found, pinned, planned and, if damaged, given back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from math import floor

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.conditions import Conditions, Decision, Representation, evaluate
from cartd.content_disposition import default_filename, top_folder
from cartd.errors import CartdError, CartNotFound, Unavailable, VolumeNotWritable, VolumeUnavailable
from cartd.integrity.repair import Repair
from cartd.model import UNFINISHED, Cart, CartStatus, TarFacts, Viewer
from cartd.pins import AccessTimes, Pins
from cartd.sending.reader import SendingReader
from cartd.sending.tree_reader import TarReader, TreeReader
from cartd.store import Store
from cartd.tar.index import TarIndex
from cartd.tar.lengths import Lengths
from cartd.tar.virtual_tar import LAYOUT_VERSION, etag, tar_facts
from cartd.tar_index_cache import TarIndexCache
from cartd.uids import may_be_stored
from cartd.volume import Volume

TOUCH_INTERVAL = 60.0
"""Seconds since the last use that the store knows, after which a new one is told at once."""
TOUCH_TIMEOUT = 1.0
"""Seconds that the touching may take; a download is not refused because the store cannot write."""
EVICTION_POLL_INTERVAL = 0.05
"""Seconds between two looks whether an eviction has gone through: as a rule it takes less."""
EVICTION_POLLS = 100

log = Logger()


class NotReady(CartdError):
    """The cart is not ready for download yet."""

    code = 202

    def __init__(self, cart: Cart) -> None:
        super().__init__("The cart is not ready for download.")
        self.cart = cart


@dataclass(frozen=True, slots=True)
class TarDescription:
    """What can be told of a tar before any of it is read.

    Equal ``etag`` means equal bytes.
    """

    name: str
    """The tar's file name; without its ending, the top folder inside."""
    length: int
    etag: str
    last_modified: float
    """Unix time since which the cart's tar has had these bytes.

    It is no earlier than the last time at which it had others, but may be in the same second.
    """


@dataclass(frozen=True, slots=True)
class Download(TarDescription):
    """A tar that can be read from any of its bytes on."""

    cart: Cart
    reader: Callable[[int, int], Awaitable[SendingReader]]
    """Gives a reader of the half-open range of bytes; it must be closed.

    Raises :class:`VolumeDamaged` as the reader itself, and :class:`NotReady`.
    """


class Downloads:
    """Opens carts for reading; what is open is pinned and cannot be evicted."""

    def __init__(
        self,
        store: Store,
        volume: Volume,
        tar_indexes: TarIndexCache,
        pins: Pins,
        access_times: AccessTimes,
        repair: Repair,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._volume = volume
        self._tar_indexes = tar_indexes
        self._pins = pins
        self._access_times = access_times
        self._repair = repair
        self._clock = clock
        self._now = now
        self._restaging: dict[int, Deferred[CartdError]] = {}
        """By cart id, what is under way."""

    @asynccontextmanager
    async def open(self, viewer: Viewer, uid: str, name: str | None) -> AsyncIterator[Download]:
        """The newest cart of ``uid`` that is there for ``viewer``, pinned meanwhile.

        It is a tar called ``name``.  Without a name it is called after the time of its posting, not
        of the request: who resumes a download goes on with the same tar.

        :raises CartNotFound: there is none.
        :raises NotReady: it is still being staged.
        :raises CartdError: it is in error; the message is the cause.
        """
        cart = _check_ready(await self._newest(viewer, uid))
        with self._pins.pin(cart.id):
            # What was deleted before the pin may already be gone: look again under the pin.
            cart = _check_ready(await self._after_eviction(cart.id))
            cart = await self._with_tar_facts(cart)
            await self._touch(cart)
            try:
                tar = await self.describe(cart, name)
                yield Download(
                    tar.name,
                    tar.length,
                    tar.etag,
                    tar.last_modified,
                    cart,
                    lambda start, stop: (
                        self._bundle_reader(cart, tar.length, start, stop)
                        if cart.bundle
                        else self._tree_reader(cart, tar.name, start, stop)
                    ),
                )
            finally:
                self._access_times.record(cart.id, self._now())

    async def _after_eviction(self, cart_id: int) -> Cart | None:
        """The cart, once an eviction of it that is under way has gone through or was given up.

        One that begins later sees the pin.

        :raises Unavailable: that takes long.
        """
        for _ in range(EVICTION_POLLS):
            cart = await self._store.cart(cart_id)
            if cart is None or cart.evicting is None:
                return cart
            await deferLater(self._clock, EVICTION_POLL_INTERVAL)
        raise Unavailable("The cart may be about to be evicted; ask again")

    async def evaluate_conditions(
        self, method: str, conditions: Conditions, cart: Cart, tar: TarDescription
    ) -> Decision:
        """Evaluate the conditions of a request for the tar of ``cart``.

        :raises PreconditionFailed, RangeNotSatisfiable: as :func:`cartd.conditions.evaluate`.
        """
        strong = method == "GET" and conditions.needs_strong_date
        return evaluate(
            method,
            conditions,
            Representation(tar.length, tar.etag, tar.last_modified),
            now=self._now(),
            date_is_strong=strong and await self._is_strong_validator(cart, tar.last_modified),
        )

    async def check_write_conditions(
        self, method: str, conditions: Conditions, viewer: Viewer, uid: str, name: str | None
    ) -> None:
        """Evaluate the conditions of a request that would change the carts of ``uid``.

        A cart that is not ready is there, but has no tag and no date.  Where there is no cart at
        all, only a POST would do anything.

        :raises PreconditionFailed: the change must not be made.
        """
        cart = await self._newest(viewer, uid)
        current = None if cart is None else Representation()
        if cart is not None and cart.status == CartStatus.READY:
            with suppress(NotReady, CartNotFound):
                tar = await self.describe(cart, name)
                current = Representation(tar.length, tar.etag, tar.last_modified)
        if current is not None or method == "POST":
            evaluate(method, conditions, current, now=self._now())

    async def _newest(self, viewer: Viewer, uid: str) -> Cart | None:
        return await self._store.newest_for(viewer, uid) if may_be_stored(uid) else None

    async def _is_strong_validator(self, cart: Cart, last_modified: float) -> bool:
        """Whether no other tar under this uid has the same ``Last-Modified``, or ever will.

        (RFC 9110, section 8.8.2.2.)
        """
        second = floor(last_modified)
        if floor(self._now()) <= second:
            return False
        return not await self._store.has_other_tar_of_second(cart, second)

    async def _touch(self, cart: Cart) -> None:
        """Remember the use, and tell the store: the commands see no pins, but that."""
        now = self._now()
        self._access_times.record(cart.id, now)
        if now - cart.used > TOUCH_INTERVAL:
            touching = Deferred.fromCoroutine(self._store.touch({cart.id: now}))
            touching.addTimeout(TOUCH_TIMEOUT, self._clock)
            with suppress(TimeoutError, Unavailable):  # it is told later, with all others
                await touching

    async def describe(self, cart: Cart, name: str | None) -> TarDescription:
        """The tar of a ready cart under that name, or under its own, and nothing else is done.

        It is answered from the cart alone: no index of the tar is needed, nothing is pinned, and
        no use is noted.  So HEAD has it, and a GET has it within :meth:`open`, where all that can
        be answered without bytes (304, 412, 416) is answered before ``reader`` is called.  Only
        the first time after an upgrade of cartd, or of a cart that Pacifica Cartd has staged, is
        an index built for it.

        :raises NotReady: it is staged again, as it is a cart of Pacifica's that is not there.
        :raises CartNotFound: it was deleted meanwhile.
        :raises VolumeDamaged: the store does not know a size.
        """
        cart = await self._with_tar_facts(cart)
        name = name or default_filename(cart.created)
        tar = cart.tar
        if tar is None:
            # Of a tar that Pacifica wrote nobody knows more.  When it is lost, and written anew,
            # cartd does that, and records what it is.
            length = cart.volume_bytes
            key = f"Pacifica/{cart.id}/{cart.updated}/{length}"
            return TarDescription(
                name, length, f'"{sha256(key.encode()).hexdigest()}"', cart.updated
            )
        return _tar_description(tar, name, _top_of(cart, name))

    async def _with_tar_facts(self, cart: Cart) -> Cart:
        """The cart with what is known of its tar, unless Pacifica wrote that."""
        if cart.bytes_total is None:
            cart = await self._imported(cart)
        if cart.bundle or (cart.tar is not None and cart.tar.layout == LAYOUT_VERSION):
            return cart
        return await self._record_tar(cart, await self._tar_indexes.get(cart))

    async def _record_tar(self, cart: Cart, index: TarIndex) -> Cart:
        tar = tar_facts(index, self._now())
        await self._store.record_tar(cart.id, tar)
        cart = _check_ready(await self._store.cart(cart.id))
        # Unless a service of another layout has recorded its own meanwhile.
        return (
            cart
            if cart.tar is not None and cart.tar.layout == LAYOUT_VERSION
            else replace(cart, tar=tar)
        )

    async def _tree_reader(self, cart: Cart, name: str, start: int, stop: int) -> SendingReader:
        """The bytes of the tar of what is in the cart's directory."""
        bundle = await self._tar_indexes.tar_below(cart, top_folder(name))
        if cart.tar is not None and bundle.index.digest != cart.tar.digest:
            # What was promised is not what the store has by now.
            await self._record_tar(cart, bundle.index)
            raise _restaging_error(cart)
        tree, root = self._volume.tree(cart), self._volume.root
        return TreeReader(
            tree, bundle.segments(start, stop), self._volume.shared_lock(cart), root=root
        )

    async def _bundle_reader(self, cart: Cart, length: int, start: int, stop: int) -> SendingReader:
        path, root = self._volume.tar(cart), self._volume.root
        return TarReader(path, length, start, stop, self._volume.shared_lock(cart), root=root)

    async def _imported(self, cart: Cart) -> Cart:
        """A ready cart of Pacifica's, measured; staged again if it is not on the volume.

        :raises NotReady: so it is.
        """
        if not await self._repair.import_cart(cart):
            raise await self.restage(cart)
        return _check_ready(await self._store.cart(cart.id))

    def restage(self, cart: Cart, unreadable: str | None = None) -> Deferred[CartdError]:
        """Have the cart given back, once, whether or not the clients that found out stay.

        ``unreadable`` is the path of a file whose bytes the disk does not give, if there is one.
        Fires when that is done, well or not, with what a client is to be told.
        """
        outcome: Deferred[CartdError] = Deferred()
        job = self._restaging.get(cart.id)
        if job is None:
            job = Deferred.fromCoroutine(self._restage(cart, unreadable))
            if not job.called:
                self._restaging[cart.id] = job

        def notify(ended: CartdError | Failure) -> CartdError | Failure:
            outcome.callback(_restaging_error(cart) if isinstance(ended, Failure) else ended)
            return ended

        job.addBoth(notify)
        return outcome

    async def check_ready(self, cart: Cart) -> None:
        """Raises what :meth:`open` raises, as things are now, if the cart is not ready any more."""
        _check_ready(await self._store.cart(cart.id))

    async def _restage(self, cart: Cart, unreadable: str | None) -> CartdError:
        try:
            await self._repair.restage(cart, unreadable=unreadable)
        except CancelledError:
            raise
        except (VolumeUnavailable, VolumeNotWritable) as error:
            return error  # the cart is as it was
        except CartdError as error:
            log.warn("Cannot give back cart {id}: {error}", id=cart.id, error=error)
        except Exception:
            log.failure("Cannot give back cart {id}", id=cart.id)
        finally:
            self._restaging.pop(cart.id, None)
        return _restaging_error(cart)

    async def stop(self) -> None:
        """Cancel what is under way on its own."""
        jobs = list(self._restaging.values())
        for job in jobs:
            job.cancel()
        await DeferredList(jobs, consumeErrors=True)


def _restaging_error(cart: Cart) -> NotReady:
    """What a client is told that has found ``cart`` damaged, or other than it was."""
    return NotReady(replace(cart, status=CartStatus.STAGING))


@lru_cache(maxsize=1024)
def _tar_description(tar: TarFacts, name: str, top: str) -> TarDescription:
    """Remembered, as a client that waits, or compares, asks for it again and again."""
    return TarDescription(
        name,
        Lengths.loaded(tar.lengths).length(top),
        etag(tar.layout, tar.digest, top),
        tar.since,
    )


def _top_of(cart: Cart, name: str) -> str:
    """The top folder in the tar; in one on the volume it is always the same."""
    return cart.uid if cart.bundle else top_folder(name)


def _check_ready(cart: Cart | None) -> Cart:
    if cart is None or cart.status == CartStatus.DELETED:
        raise CartNotFound("The cart does not exist or has already been deleted")
    if cart.status in UNFINISHED:
        raise NotReady(cart)
    if cart.status == CartStatus.ERROR:
        raise CartdError(cart.error)
    return cart
