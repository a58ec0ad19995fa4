"""One cart from its manifest to ready: link, learn, reserve, recall, fetch, bundle.

Strategy: what another cart has on the volume is linked.  For the rest, the archive is asked
for the state of every file before a byte is fetched, so that the cart's size is known and
room for all of it is promised at once.  Then what is on disk is fetched, while what is on
tape is announced, all of it, and asked for again with growing waits.  Files are read from
the store page by page: a cart of a million costs no more memory than one of a thousand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.archive import Archive, ArchiveError, FileState
from cartd.backoff import FIRST_WAIT, LONGEST_WAIT
from cartd.checksum import Checksum
from cartd.concurrency import both, for_each
from cartd.losses import begun, lose_what_is_missing
from cartd.model import Cart, CartFile
from cartd.outage import Outage
from cartd.patience import Patience
from cartd.plans import Plans
from cartd.progress import Batches
from cartd.reader import TreeReader
from cartd.store import Store
from cartd.tolerance import Tolerance
from cartd.twins import link_twins
from cartd.volume import Volume
from cartd.volume.incoming import Incoming

T = TypeVar("T")
PAGE = 2000
"""Rows read at once, shared by the carts in staging."""
WINDOW = 128
"""Files under way at once, shared by the carts in staging."""


class Reserves(Protocol):
    """Promises room on the volume to a cart, or raises NoSpace."""

    def __call__(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What every staging works with."""

    store: Store
    volume: Volume
    archive: Archive
    reserve: Reserves
    plans: Plans
    outage: Outage
    tolerance: Tolerance
    patience: Patience
    clock: IReactorTime
    now: Callable[[], float]
    """Unix time."""
    carts_at_once: Callable[[], int]
    """How many carts are being staged now: they share pages, windows and turns."""


class Staging:
    """The staging of one cart, under a lease that ``holder`` holds."""

    def __init__(self, tools: Tools, cart: Cart, holder: str, *, resumed: bool) -> None:
        self._tools = tools
        self._cart = cart
        self._holder = holder
        self._resumed = resumed
        """Whether files may be on the volume that the store does not know of."""
        self._unmeasured = False
        """Whether nobody knew the sizes of all files when it began, as of Pacifica Cartd's."""
        self.tar_bytes: int | None = None
        """Those of its tar, which is on the volume in place of its files; none until it is."""
        self._on_tape: set[int] = set()
        self._staged: Batches[tuple[int, str]] = Batches(self._record_staged, tools.clock.seconds)

    async def run(self) -> None:
        """Stage all that is not staged yet, and make the cart ready.

        :raises FileFailed: a file could not be had.
        :raises NoSpace: the volume has no room.
        :raises OutageTooLong: the archive was away for too long.
        :raises LeaseLost: somebody else has the cart now.
        """
        self._tools.outage.take_up(self._cart)
        await self._clear()
        if self._cart.files_staged and not await self._tar_is_whole():
            self._cart = await lose_what_is_missing(
                self._tools.store,
                self._tools.volume,
                self._cart,
                self._holder,
                lambda: self._share(PAGE),
            )
        self._cart = await link_twins(
            self._tools.store,
            self._tools.volume,
            self._cart,
            self._holder,
            lambda: self._share(PAGE),
            hashed=self._resumed,
        )
        await self._find_in_place()
        bytes_total = await self._learn_states()
        if self._unmeasured:
            await self._find_in_place()
        await self._reserve(bytes_total)
        try:
            await both(self._fetch_from_disk(), self._recall_from_tape())
        finally:
            await self.flush()
        await self._finish()

    async def flush(self) -> None:
        """Write down which files have been staged so far."""
        await self._staged.flush()

    async def drop_unrecorded(self) -> None:
        """Remove what is on the volume and the store does not count, for a cart that ends in error.

        That is what was placed as the end came, or before a crash that nobody has recorded since.
        """
        store, volume, cart = self._tools.store, self._tools.volume, self._cart
        await volume.clear_incoming(cart.id)
        after = -1
        while page := await store.files(cart.id, after=after, limit=PAGE, unstaged=True):
            await volume.drop_files(cart, page)
            after = page[-1].position

    async def _clear(self) -> None:
        """Remove what is of no use any more.

        A bundle is written when all files are staged: if they are not, it was found damaged, or
        Pacifica Cartd has left it.
        """
        cart, volume = self._cart, self._tools.volume
        await volume.clear_incoming(cart.id, all_else=not (self._resumed and begun(cart)))
        if cart.bundle and cart.files_staged < cart.files_total:
            await volume.drop_tar(cart)

    async def _tar_is_whole(self) -> bool:
        """Whether the cart is a bundle that was written before a stop: then it needs no tree."""
        cart = self._cart
        if not cart.bundle or cart.files_staged < cart.files_total:
            return False
        plan = await self._tools.plans.build(cart, cart.uid)
        return await self._tools.volume.tar_size(cart) == plan.length

    async def _find_in_place(self) -> None:
        """Record what is on the volume and right, before the archive is asked for it.

        A crash has kept it from being recorded, or from being known to be on the disk.
        """
        if not self._resumed:
            return
        cart, store = self._cart, self._tools.store
        async for page in self._unstaged_pages():
            self._unmeasured = self._unmeasured or any(file.size is None for file in page)
            async for file in self._tools.volume.in_place(cart, page):
                await self._staged.add((file.position, file.hash_sum))
                self._on_tape.discard(file.position)
        await self.flush()
        self._cart = await store.cart(cart.id) or cart

    # Learning what the archive has

    async def _learn_states(self) -> int:
        """Ask for the state of every unstaged file; give the bytes of the whole cart."""
        cart_id, holder = self._cart.id, self._holder
        learnt: Batches[tuple[int, int, int]] = Batches(
            lambda states: self._tools.store.record_states(cart_id, holder, states),
            self._tools.clock.seconds,
        )
        total = self._cart.bytes_staged

        async def learn(file: CartFile) -> None:
            nonlocal total
            state = await self._patiently(file, self._state)
            total += state.size
            if not state.on_disk:
                self._on_tape.add(file.position)
            if file.size != state.size or file.mtime is None:
                await learnt.add((file.position, state.size, state.mtime))

        await for_each(self._unstaged(), learn, self._window)
        await learnt.flush()
        return total

    async def _patiently(self, file: CartFile, attempt: Callable[[CartFile], Awaitable[T]]) -> T:
        return await self._tools.patience.with_file(self._cart, file, lambda: attempt(file))

    async def _state(self, file: CartFile) -> FileState:
        archive = self._tools.archive
        try:
            return await archive.status(file.archive_id)
        except ArchiveError as error:
            if not error.unexplained:
                raise
            raise await archive.explained(file.archive_id, error) from error

    async def _reserve(self, bytes_total: int) -> None:
        volume_bytes = bytes_total
        if self._cart.bundle:
            plan = await self._tools.plans.build(self._cart, self._cart.uid)
            volume_bytes += plan.length
        await self._tools.reserve(
            self._cart, self._holder, bytes_total=bytes_total, volume_bytes=volume_bytes
        )

    # Fetching

    async def _fetch_from_disk(self) -> None:
        await for_each(
            self._unstaged(lambda file: file.position not in self._on_tape),
            self._fetch,
            self._window,
        )

    async def _recall_from_tape(self) -> None:
        """Announce every file that is not on disk, then fetch each when it has come."""
        if not self._on_tape:
            return
        await for_each(self._on_tape_still(), self._announce, self._window)
        wait = FIRST_WAIT
        while self._on_tape:
            await deferLater(self._tools.clock, wait)
            before = len(self._on_tape)
            if wait == LONGEST_WAIT:
                # Long enough for an archive to have forgotten what it was asked for.
                await for_each(self._on_tape_still(), self._announce, self._window)
            await for_each(self._on_tape_still(), self._fetch_if_on_disk, self._window)
            wait = FIRST_WAIT if len(self._on_tape) < before else min(wait * 2, LONGEST_WAIT)

    def _on_tape_still(self) -> AsyncIterator[CartFile]:
        return self._unstaged(lambda file: file.position in self._on_tape)

    async def _announce(self, file: CartFile) -> None:
        await self._patiently(file, lambda file: self._tools.archive.stage(file.archive_id))

    async def _fetch_if_on_disk(self, file: CartFile) -> None:
        state = await self._patiently(file, self._state)
        if state.on_disk:
            await self._fetch(file)
            self._on_tape.discard(file.position)

    async def _fetch(self, file: CartFile) -> None:
        hash_sum = await self._patiently(file, self._fetch_once)
        await self._staged.add((file.position, hash_sum))

    async def _fetch_once(self, file: CartFile) -> str:
        assert file.size is not None
        checksum = Checksum(file.hash_type, file.hash_sum, file.size)
        incoming = self._tools.volume.incoming(self._cart, file, checksum)
        try:
            await self._transfer(file, incoming)
            hash_sum = await incoming.finish()
        finally:
            await incoming.abort()
        self._tools.tolerance.was_right()
        return hash_sum

    async def _transfer(self, file: CartFile, incoming: Incoming) -> None:
        try:
            await self._tools.archive.fetch(file.archive_id, incoming)
        except (ArchiveError, CancelledError):
            # A disk that fails, or a body too long, stops the transfer: that is the cause.
            if incoming.failure is not None:
                raise incoming.failure from None
            raise

    async def _record_staged(self, staged: Sequence[tuple[int, str]]) -> None:
        await self._tools.store.record_staged(
            self._cart.id, self._holder, staged, now=self._tools.now()
        )

    # Finishing

    async def _finish(self) -> None:
        store = self._tools.store
        if self._cart.bundle:
            volume_bytes = await self._bundle()
        else:
            cart = await store.cart(self._cart.id)
            volume_bytes = cart.bytes_total or 0 if cart else 0
        newest = await store.newest(self._cart.uid)
        if newest is not None and newest.id == self._cart.id:
            await self._tools.volume.link(self._cart)
        else:
            await self._tools.volume.clear_incoming(self._cart.id)
        await store.record_ready(
            self._cart.id, self._holder, volume_bytes=volume_bytes, now=self._tools.now()
        )

    async def _bundle(self) -> int:
        """Write the tar, unless a start before this one has; give its length."""
        cart, volume = self._cart, self._tools.volume
        await self._tools.store.begin_bundling(cart.id, self._holder, self._tools.now())
        plan = await self._tools.plans.build(cart, cart.uid)
        if await volume.tar_size(cart) == plan.length:
            await volume.drop_tree(cart)
        else:
            reader = TreeReader(volume.tree(cart), plan.segments(0, plan.length))
            await volume.write_tar(cart, reader, plan.length)
        self.tar_bytes = plan.length
        await self._tools.store.record_bundled(cart.id, self._holder)
        return plan.length

    # Pages and windows

    async def _unstaged(
        self, wanted: Callable[[CartFile], bool] = lambda _: True
    ) -> AsyncIterator[CartFile]:
        async for page in self._unstaged_pages():
            for file in page:
                if wanted(file):
                    yield file

    async def _unstaged_pages(self) -> AsyncIterator[list[CartFile]]:
        after = -1
        while page := await self._tools.store.files(
            self._cart.id, after=after, limit=self._share(PAGE), unstaged=True
        ):
            yield page
            after = page[-1].position

    def _window(self) -> int:
        return self._share(WINDOW)

    def _share(self, whole: int) -> int:
        return max(whole // max(self._tools.carts_at_once(), 1), 2)
