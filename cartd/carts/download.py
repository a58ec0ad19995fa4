"""Downloads: find and pin a ready cart, describe and read its tar, restage a damaged cart.

:class:`Pins` and :class:`AccessTimes` tell removal and eviction which carts are in use.
What happens to a download while it is sent is in :mod:`cartd.sending.sender`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from math import floor

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.carts.description import (
    TarDescription,
    bag_description,
    is_stored,
    recorded_description,
)
from cartd.errors import (
    CartdError,
    CartFailed,
    CartNotFound,
    Conflict,
    Problem,
    Unavailable,
    VolumeNotWritable,
    VolumeUnavailable,
)
from cartd.http.headers import default_filename, top_folder
from cartd.http.ranges import Conditions, Decision, Representation, evaluate_conditions
from cartd.integrity.repair import Repair
from cartd.model import (
    UNFINISHED,
    Cart,
    CartFormat,
    CartStatus,
    Viewer,
    uid_may_be_stored,
)
from cartd.sending.reader import SendingReader, TarReader, TreeReader
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.store import Store
from cartd.tar.bag import BAG_LAYOUT, bag_facts
from cartd.tar.index import TarIndex
from cartd.tar.virtual_tar import LAYOUT_VERSION, VirtualTar, segments_in, tar_facts
from cartd.volume import Volume

log = Logger()

TOUCH_INTERVAL = 60.0
"""Seconds: an older access time in the store is updated at once, not with the next batch."""
TOUCH_TIMEOUT = 1.0
"""Seconds that this may take; a download does not fail because the store cannot write."""
EVICTION_POLL_INTERVAL = 0.05
"""Seconds between polls for the end of an eviction, which as a rule takes less."""
EVICTION_POLLS = 100
_NO_OTHER_FORMAT = (
    "The cart is one tar on the volume that this version of cartd has not written, and can be sent"
    " only as it is"
)


class NotReady(CartdError):
    """The cart is not ready for download yet."""

    code = 202
    problem = Problem.NOT_READY

    def __init__(self, cart: Cart) -> None:
        super().__init__("The cart is not ready for download.")
        self.cart = cart


@dataclass(frozen=True, slots=True)
class Download(TarDescription):
    """A tar that can be read from any byte on."""

    cart: Cart
    reader: Callable[[int, int], Awaitable[SendingReader]]
    """Returns a reader of the half-open range of bytes, to be closed by the caller.

    Raises :class:`VolumeDamaged`, as the reader does, and :class:`NotReady`.
    """


class Pins:
    """Counts the downloads of each cart in this process; a pinned cart's files stay."""

    def __init__(self) -> None:
        self._pins: Counter[int] = Counter()
        self._waiters: dict[int, list[Deferred[None]]] = {}

    @contextmanager
    def pin(self, cart_id: int) -> Iterator[None]:
        """Keep the cart's files on the volume for as long as the block runs."""
        self._pins[cart_id] += 1
        try:
            yield
        finally:
            self._pins[cart_id] -= 1
            if not self._pins[cart_id]:
                del self._pins[cart_id]
                self._notify_waiters(cart_id)

    def is_pinned(self, cart_id: int) -> bool:
        return cart_id in self._pins

    def count(self) -> int:
        """Return the number of pins in all, which is the number of downloads."""
        return self._pins.total()

    def cart_ids(self) -> list[int]:
        """Return the ids of the pinned carts."""
        return list(self._pins)

    def when_unpinned(self, cart_id: int) -> Deferred[None]:
        """Fire as soon as the cart has no pin."""
        done: Deferred[None] = Deferred(lambda waiter: self._waiters[cart_id].remove(waiter))
        if self.is_pinned(cart_id):
            self._waiters.setdefault(cart_id, []).append(done)
        else:
            done.callback(None)
        return done

    def _notify_waiters(self, cart_id: int) -> None:
        """Fire the waiters; a callback may cancel other waiters, or pin the cart again."""
        waiters = self._waiters.get(cart_id, [])
        while waiters and not self.is_pinned(cart_id):
            waiters.pop(0).callback(None)
        if not waiters:
            self._waiters.pop(cart_id, None)

    async def wait_until_idle(self) -> None:
        """Wait until nothing is pinned."""
        while self._pins:
            await self.when_unpinned(next(iter(self._pins)))


class AccessTimes:
    """When each cart was last used, in Unix seconds, until it is written to the store.

    Access times are collected here and written now and then, in one statement, so that a download
    costs no transaction.
    """

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def record(self, cart_id: int, now: float) -> None:
        """Remember that the cart was used ``now``."""
        self._last[cart_id] = now

    def last(self, cart_id: int, stored: float) -> float:
        """Return the later of the time remembered here and the ``stored`` one."""
        return max(stored, self._last.get(cart_id, stored))

    def drain(self) -> dict[int, float]:
        """Return, and forget, the times recorded since the last call."""
        drained, self._last = self._last, {}
        return drained

    def restore(self, times: dict[int, float]) -> None:
        """Remember times again that could not be written."""
        for cart_id, used in times.items():
            self._last[cart_id] = self.last(cart_id, used)


class Downloads:
    """Opens carts for reading; an open cart is pinned, so that it cannot be evicted."""

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
        """By cart id, the restaging of damaged carts that is under way."""

    @asynccontextmanager
    async def open(
        self, viewer: Viewer, uid: str, name: str | None, format_: CartFormat | None = None
    ) -> AsyncIterator[Download]:
        """Open, and pin, the newest cart of ``uid`` that ``viewer`` may see, as a tar ``name``.

        The default name contains the time at which the cart was posted, not that of the request,
        so that a resumed download continues the same tar.  ``format_`` is that of the cart if None.

        :raises CartNotFound: there is no such cart.
        :raises Conflict: the cart cannot be sent in this format.
        :raises NotReady: it is still being staged.
        :raises CartdError: it is in error; the message is the cause.
        """
        cart = _check_ready(await self._newest(viewer, uid))
        with self._pins.pin(cart.id):
            # A cart deleted before the pin may already be removed: read it again under the pin.
            cart = _check_ready(await self._after_eviction(cart.id))
            cart = await self._with_facts(cart, format_)
            await self._touch(cart)
            try:
                tar = await self.describe(cart, name, format_)
                yield Download(
                    tar.name,
                    tar.length,
                    tar.etag,
                    tar.last_modified,
                    cart,
                    lambda start, stop: self._reader(cart, tar, start, stop),
                    format=tar.format,
                )
            finally:
                self._access_times.record(cart.id, self._now())

    async def _after_eviction(self, cart_id: int) -> Cart | None:
        """Return the cart, once an eviction of it is done or was aborted.

        An eviction that begins later sees the pin.

        :raises Unavailable: the eviction takes too long.
        """
        for _ in range(EVICTION_POLLS):
            cart = await self._store.carts.cart(cart_id)
            if cart is None or cart.evicting is None:
                return cart
            await deferLater(self._clock, EVICTION_POLL_INTERVAL)
        raise Unavailable("The cart may be about to be evicted; try again")

    async def evaluate_conditions(
        self, method: str, conditions: Conditions, cart: Cart, tar: TarDescription
    ) -> Decision:
        """Evaluate the conditions of a request for the tar of ``cart``.

        :raises PreconditionFailed, RangeNotSatisfiable: see
            :func:`cartd.http.ranges.evaluate_conditions`.
        """
        strong = method == "GET" and conditions.needs_strong_date
        return evaluate_conditions(
            method,
            conditions,
            Representation(tar.length, tar.etag, tar.last_modified),
            now=self._now(),
            date_is_strong=strong and await self._is_strong_validator(cart, tar),
        )

    async def check_write_conditions(
        self,
        method: str,
        conditions: Conditions,
        viewer: Viewer,
        uid: str,
        name: str | None,
        format_: CartFormat | None = None,
    ) -> None:
        """Evaluate the conditions of a request that would change the carts of ``uid``.

        A cart that is not ready, or cannot be sent in this format, exists, but has neither tag nor
        date.  If there is no cart, only a POST is checked, as other methods would change nothing.

        :raises PreconditionFailed: the request must be rejected.
        """
        cart = await self._newest(viewer, uid)
        current = None if cart is None else Representation()
        if cart is not None and cart.status == CartStatus.READY:
            with suppress(NotReady, CartNotFound, Conflict):
                tar = await self.describe(cart, name, format_)
                current = Representation(tar.length, tar.etag, tar.last_modified)
        if current is not None or method == "POST":
            evaluate_conditions(method, conditions, current, now=self._now())

    async def _newest(self, viewer: Viewer, uid: str) -> Cart | None:
        return await self._store.carts.newest_for(viewer, uid) if uid_may_be_stored(uid) else None

    async def _is_strong_validator(self, cart: Cart, tar: TarDescription) -> bool:
        """Whether no other tar of this uid has, or will have, the same ``Last-Modified``.

        (RFC 9110, section 8.8.2.2.)  The dates of bags are not compared: a bag of another cart may
        have any.
        """
        second = floor(tar.last_modified)
        if floor(self._now()) <= second or await self._store.carts.has_other_bag(cart):
            return False
        return not await self._store.carts.has_other_tar_of_second(cart, second)

    async def _touch(self, cart: Cart) -> None:
        """Record the use, and write it to the store for the commands, which do not see pins."""
        now = self._now()
        self._access_times.record(cart.id, now)
        if now - cart.used > TOUCH_INTERVAL:
            touching = Deferred.fromCoroutine(self._store.carts.touch({cart.id: now}))
            touching.addTimeout(TOUCH_TIMEOUT, self._clock)
            with suppress(TimeoutError, Unavailable):  # written with the next batch
                await touching

    async def describe(
        self, cart: Cart, name: str | None, format_: CartFormat | None = None
    ) -> TarDescription:
        """Describe the tar of a ready cart, called ``name`` or by default after its posting.

        The cart's row suffices: no index is built, nothing is pinned and no use is recorded, so
        HEAD requests and 304, 412 and 416 responses are cheap.  An index is built only once after
        an upgrade of cartd, once for a cart that Pacifica Cartd has staged, and once for a bag.

        :raises NotReady: a cart of Pacifica's is not on the volume, and is restaged.
        :raises CartNotFound: it was deleted meanwhile.
        :raises Conflict: the cart cannot be sent in this format.
        :raises VolumeDamaged: the store does not know a size.
        """
        cart = await self._with_facts(cart, format_)
        name = name or default_filename(cart.created)
        if (format_ or cart.format) is CartFormat.BAG:
            facts = self._tar_indexes.bag_facts(cart)
            assert facts is not None
            return bag_description(cart, facts, name)
        if (known := recorded_description(cart, name)) is not None:
            return known
        # A tar that Pacifica wrote: no more is known.  If it is lost, cartd writes it anew and
        # records its facts.
        length = cart.volume_bytes
        key = f"Pacifica/{cart.id}/{cart.updated}/{length}"
        return TarDescription(name, length, f'"{sha256(key.encode()).hexdigest()}"', cart.updated)

    async def _with_facts(self, cart: Cart, format_: CartFormat | None) -> Cart:
        """Return the cart with the facts of its tar, unless Pacifica wrote the tar."""
        format_ = format_ or cart.format
        if cart.bytes_total is None:
            cart = await self._imported(cart)
        stored = is_stored(cart, CartFormat.TAR)
        if not stored and (cart.tar is None or cart.tar.layout != LAYOUT_VERSION):
            cart = await self._record_tar(cart, await self._tar_indexes.get(cart))
        if cart.has_tar and format_ is not cart.format and not self._knows_positions(cart):
            raise Conflict(_NO_OTHER_FORMAT)
        if format_ is CartFormat.TAR or self._tar_indexes.bag_facts(cart) is not None:
            return cart
        return await self._record_bag(cart, await self._tar_indexes.get(cart, CartFormat.BAG))

    def _knows_positions(self, cart: Cart) -> bool:
        """Whether the tar on the volume is of the current layout: its index has their positions."""
        if cart.format is CartFormat.TAR:
            return cart.tar is not None and cart.tar.layout == LAYOUT_VERSION
        bag = self._tar_indexes.bag_facts(cart)
        return bag is not None and bag.layout == BAG_LAYOUT

    async def _record_tar(self, cart: Cart, index: TarIndex) -> Cart:
        tar = tar_facts(index, self._now())
        await self._store.progress.record_tar(cart.id, tar, seen=cart.updated)
        cart = _check_ready(await self._store.carts.cart(cart.id))
        # A service of another version, with another layout, may have recorded its own meanwhile.
        return (
            cart
            if cart.tar is not None and cart.tar.layout == LAYOUT_VERSION
            else replace(cart, tar=tar)
        )

    async def _record_bag(self, cart: Cart, index: TarIndex) -> Cart:
        bag = bag_facts(index, self._now(), cart.bag).dumped()
        await self._store.progress.record_bag(cart.id, bag)
        cart = _check_ready(await self._store.carts.cart(cart.id))
        if self._tar_indexes.bag_facts(cart) is None:
            # Another process has restaged the cart, or has another setting.
            cart = replace(cart, bag=bag)
            if self._tar_indexes.bag_facts(cart) is None:
                raise _restaging_error(cart)
        return cart

    def _reader(
        self, cart: Cart, tar: TarDescription, start: int, stop: int
    ) -> Awaitable[SendingReader]:
        if is_stored(cart, tar.format):
            return self._bundle_reader(cart, tar.length, start, stop)
        return self._computed_reader(cart, tar, start, stop)

    async def _computed_reader(
        self, cart: Cart, tar: TarDescription, start: int, stop: int
    ) -> SendingReader:
        """Return a reader of a tar whose files are in the cart's directory, or in its other tar."""
        virtual = await self._tar_indexes.tar_below(cart, top_folder(tar.name), tar.format)
        if virtual.etag != tar.etag:
            # The client was announced another tar than the store describes by now.
            if tar.format is CartFormat.BAG:
                await self._record_bag(cart, virtual.index)
            else:
                await self._record_tar(cart, virtual.index)
            raise _restaging_error(cart)
        lock, root = self._volume.locks.shared(cart), self._volume.paths.root
        if not cart.has_tar:
            tree = self._volume.paths.tree(cart)
            return TreeReader(tree, virtual.segments(start, stop), lock, root=root)
        path = self._volume.paths.tar(cart)
        stored = await self._stored_tar(cart)
        segments = segments_in(stored, path.name, virtual, start, stop)
        return TreeReader(path.parent, segments, lock, root=root, keep_open=True)

    async def _stored_tar(self, cart: Cart) -> VirtualTar:
        """Return the tar on the volume, whose index has the positions of the files in it.

        :raises NotReady: it has been written again, by another process.
        """
        stored = await self._tar_indexes.tar_below(cart, cart.uid, cart.format)
        if stored.etag != (await self.describe(cart, None)).etag:
            raise _restaging_error(cart)
        return stored

    async def _bundle_reader(self, cart: Cart, length: int, start: int, stop: int) -> SendingReader:
        path, root = self._volume.paths.tar(cart), self._volume.paths.root
        return TarReader(path, length, start, stop, self._volume.locks.shared(cart), root=root)

    async def _imported(self, cart: Cart) -> Cart:
        """Return a ready cart of Pacifica's, with its sizes; restage it if it is not on the volume.

        :raises NotReady: it is restaged.
        """
        if not await self._repair.import_cart(cart):
            raise await self.restage(cart)
        return _check_ready(await self._store.carts.cart(cart.id))

    def restage(self, cart: Cart, unreadable: str | None = None) -> Deferred[CartdError]:
        """Restage a damaged cart; concurrent calls share one run, which no caller can cancel.

        ``unreadable`` is the path of a file that the disk cannot read, if there is one.  Fires when
        that is done, successfully or not, with the error to respond with.
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
        """Raise what :meth:`open` raises, if the cart is no longer ready."""
        _check_ready(await self._store.carts.cart(cart.id))

    async def _restage(self, cart: Cart, unreadable: str | None) -> CartdError:
        try:
            await self._repair.restage(cart, unreadable=unreadable)
        except CancelledError:
            raise
        except (VolumeUnavailable, VolumeNotWritable) as error:
            return error  # the cart is unchanged
        except CartdError as error:
            log.warn("{cart} cannot be restaged: {error}", cart=cart, error=error)
        except Exception:
            log.failure("{cart} cannot be restaged", cart=cart)
        finally:
            self._restaging.pop(cart.id, None)
        return _restaging_error(cart)

    async def stop(self) -> None:
        """Cancel the restaging that is under way."""
        jobs = list(self._restaging.values())
        for job in jobs:
            job.cancel()
        await DeferredList(jobs, consumeErrors=True)


def _restaging_error(cart: Cart) -> NotReady:
    """Return the response to a client that found ``cart`` damaged, or changed."""
    return NotReady(replace(cart, status=CartStatus.STAGING))


def _check_ready(cart: Cart | None) -> Cart:
    if cart is None or cart.status == CartStatus.DELETED:
        raise CartNotFound("The cart does not exist or has already been deleted")
    if cart.status in UNFINISHED:
        raise NotReady(cart)
    if cart.status == CartStatus.ERROR:
        raise CartFailed(cart.error, cart.problem)
    return cart
