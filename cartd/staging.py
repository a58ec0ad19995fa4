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
from typing import Protocol

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.archive import Archive, ArchiveError, FileState
from cartd.backoff import FIRST_WAIT, LONGEST_WAIT
from cartd.checksum import Checksum
from cartd.concurrency import Turns, both, for_each
from cartd.model import Cart, CartFile
from cartd.patience import Patience
from cartd.plans import Plans
from cartd.progress import Batches
from cartd.reader import TreeReader
from cartd.store import Store
from cartd.tolerance import Tolerance
from cartd.twins import link_twins
from cartd.volume import Volume
from cartd.volume.incoming import Incoming

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
    turns: Turns
    tolerance: Tolerance
    patience: Patience
    clock: IReactorTime
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
        self.tar_bytes: int | None = None
        """Those of its tar, which is on the volume in place of its files; none until it is."""
        self._on_tape: set[int] = set()
        self._staged: Batches[tuple[int, str]] = Batches(self._record_staged, tools.clock.seconds)

    async def run(self) -> None:
        """Stage all that is not staged yet, and make the cart ready.

        :raises FileFailed: a file could not be had.
        :raises NoSpace: the volume has no room.
        :raises LeaseLost: somebody else has the cart now.
        """
        await self._clear()
        self._cart = await link_twins(
            self._tools.store,
            self._tools.volume,
            self._cart,
            self._holder,
            lambda: self._share(PAGE),
            hashed=self._resumed,
        )
        if self._resumed:
            await self._part()
        await self._reserve(await self._learn_states())
        try:
            await both(self._fetch_from_disk(), self._recall_from_tape())
        finally:
            await self.flush()
        await self._finish()

    async def flush(self) -> None:
        """Write down which files have been staged so far."""
        await self._staged.flush()

    async def _clear(self) -> None:
        """Remove what is of no use any more.

        A bundle is written when all files are staged: if they are not, it was found damaged, or
        Pacifica Cartd has left it.
        """
        cart, volume = self._cart, self._tools.volume
        await volume.clear_incoming(cart.id)
        if cart.bundle and cart.files_staged < cart.files_total:
            await volume.drop_tar(cart)

    async def _part(self) -> None:
        """Let no file be another cart's that is not recorded to be: its bytes would count twice.

        It was linked and a kill, or the going of its twin, kept that from being recorded.
        """
        after = -1
        while page := await self._page(after):
            await self._tools.volume.part(self._cart, page)
            after = page[-1].position

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
            state = await self._tools.patience.with_file(file, lambda: self._state(file))
            total += state.size
            if not state.on_disk:
                self._on_tape.add(file.position)
            if file.size != state.size or file.mtime is None:
                await learnt.add((file.position, state.size, state.mtime))

        await for_each(self._unstaged(), learn, self._window)
        await learnt.flush()
        return total

    async def _state(self, file: CartFile) -> FileState:
        async with self._tools.turns.turn(self._cart.id):
            return await self._tools.archive.status(file.archive_id)

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
        async def attempt() -> None:
            async with self._tools.turns.turn(self._cart.id):
                await self._tools.archive.stage(file.archive_id)

        await self._tools.patience.with_file(file, attempt)

    async def _fetch_if_on_disk(self, file: CartFile) -> None:
        state = await self._tools.patience.with_file(file, lambda: self._state(file))
        if state.on_disk:
            await self._fetch(file)
            self._on_tape.discard(file.position)

    async def _fetch(self, file: CartFile) -> None:
        if self._resumed and await self._tools.volume.has(self._cart, file):
            hash_sum = file.hash_sum
        else:
            hash_sum = await self._tools.patience.with_file(file, lambda: self._fetch_once(file))
        await self._staged.add((file.position, hash_sum))

    async def _fetch_once(self, file: CartFile) -> str:
        assert file.size is not None
        checksum = Checksum(file.hash_type, file.hash_sum, file.size)
        async with self._tools.turns.turn(self._cart.id):
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
            self._cart.id, self._holder, staged, now=self._tools.clock.seconds()
        )

    # Finishing

    async def _finish(self) -> None:
        store, clock = self._tools.store, self._tools.clock
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
            self._cart.id, self._holder, volume_bytes=volume_bytes, now=clock.seconds()
        )

    async def _bundle(self) -> int:
        """Write the tar, unless a start before this one has; give its length."""
        cart, volume = self._cart, self._tools.volume
        await self._tools.store.begin_bundling(cart.id, self._holder, self._tools.clock.seconds())
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
        after = -1
        while page := await self._page(after):
            for file in page:
                if wanted(file):
                    yield file
            after = page[-1].position

    async def _page(self, after: int) -> list[CartFile]:
        """The next unstaged files behind that position."""
        return await self._tools.store.files(
            self._cart.id, after=after, limit=self._share(PAGE), unstaged=True
        )

    def _window(self) -> int:
        return self._share(WINDOW)

    def _share(self, whole: int) -> int:
        return max(whole // max(self._tools.carts_at_once(), 1), 2)
