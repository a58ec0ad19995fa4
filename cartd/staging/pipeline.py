"""One cart from its manifest to ready: link, learn, reserve, recall, fetch, bundle.

Strategy: what another cart has on the volume is linked.  For the rest, the archive is asked
for the state of every file before a byte is fetched, so that the cart's size is known and
room for all of it is promised at once.  Then what is on disk is fetched, while what is on
tape is announced, all of it, and asked for again with growing waits.  Files are read from
the store page by page: a cart of a million costs no more memory than one of a thousand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from cartd.errors import PathCollision
from cartd.integrity.missing_files import invalidate_missing, may_have_files
from cartd.model import Cart, CartFile, TarFacts
from cartd.sending.tree_reader import TreeReader
from cartd.staging.batcher import Batcher
from cartd.staging.context import StagingContext
from cartd.staging.dedup import link_duplicates
from cartd.staging.failures import Failures
from cartd.staging.fetch import PAGE, FileFetcher
from cartd.tar.lengths import Lengths
from cartd.tar.virtual_tar import tar_facts


class StagingPipeline:
    """The staging of one cart, under a lease that ``holder`` holds."""

    def __init__(self, context: StagingContext, cart: Cart, holder: str, *, resumed: bool) -> None:
        self._context = context
        self._cart = cart
        self._holder = holder
        self._resumed = resumed
        """Whether files may be on the volume that the store does not know of."""
        self._sizes_unknown = False
        """Whether nobody knew the sizes of all files when it began, as of Pacifica Cartd's."""
        self.tar_bytes: int | None = None
        """Those of its tar, which is on the volume in place of its files; none until it is."""
        self._staged: Batcher[tuple[int, str]] = Batcher(self._record_staged, context.clock.seconds)
        self._failures = Failures(self._record_failed, context.clock.seconds)
        self._fetcher = FileFetcher(context, cart, holder, self._staged.add, self._failures)

    async def run(self) -> None:
        """Stage all that is not staged yet, and make the cart ready.

        :raises InvalidInput: the cart's uid cannot be on the volume.
        :raises FilesFailed: some files could not be had; all others are on the volume.
        :raises PathCollision: the volume cannot tell two of its paths apart.
        :raises FileFailed: a file could not be written, nor could another.
        :raises NoSpace: the volume has no room.
        :raises OutageTooLong: the archive was away for too long.
        :raises LeaseLost: somebody else has the cart now.
        """
        self._context.volume.check_uid(self._cart)
        self._context.breaker.resume_cart(self._cart)
        await self._remove_leftovers()
        if collision := await self._context.volume.collision(self._all_pages):
            raise PathCollision(*collision)
        if await self._tar_is_complete():
            await self._finish()
            return
        if self._cart.files_staged:
            self._cart = await invalidate_missing(
                self._context.store,
                self._context.volume,
                self._cart,
                self._holder,
                lambda: self._context.share(self._cart, PAGE),
            )
        await self._link_duplicates()
        if await self._find_in_place():
            await self._link_duplicates()
        bytes_total = self._cart.bytes_staged + await self._fetcher.query_states()
        if self._sizes_unknown:
            await self._find_in_place()
        await self._reserve(bytes_total)
        try:
            await self._fetcher.fetch()
        finally:
            await self.flush()
        await self._failures.check()
        await self._finish()

    async def _all_pages(self) -> AsyncIterator[list[CartFile]]:
        after = -1
        while page := await self._context.store.files(
            self._cart.id, after=after, limit=self._context.share(self._cart, PAGE)
        ):
            yield page
            after = page[-1].position

    async def flush(self) -> None:
        """Write down which files have been staged, and which have failed, so far."""
        await self._staged.flush()
        await self._failures.flush()

    def idle(self) -> float:
        """For how many seconds nothing was done to fetch its files, though nothing hindered it."""
        return self._fetcher.idle()

    async def reconcile_volume(self) -> None:
        """Record what is on the volume and right, and remove the rest: the cart ends in error.

        Such is what was placed as the end came, or before a crash that nobody has recorded since.
        """
        volume, cart = self._context.volume, self._cart
        await volume.clear_incoming(cart.id)
        async for page in self._fetcher.unstaged_pages():
            recorded = {at async for _, found in self._record_found(page) for at in found}
            await volume.drop_files(cart, [one for one in page if one.position not in recorded])

    async def _remove_leftovers(self) -> None:
        """Remove what is of no use any more.

        A bundle is written when all files are staged: if they are not, it was found damaged, or
        Pacifica Cartd has left it.
        """
        cart, volume = self._cart, self._context.volume
        await volume.clear_incoming(
            cart.id, include_staged=not (self._resumed and may_have_files(cart))
        )
        if cart.bundle and cart.files_staged < cart.files_total:
            await volume.drop_tar(cart)

    async def _tar_is_complete(self) -> bool:
        """Whether the cart is a bundle that was written before a stop: then nothing is lacking."""
        cart = self._cart
        if not cart.bundle or cart.files_staged < cart.files_total:
            return False
        # What a tar holds that is there was recorded before it was written.
        if cart.tar is None:
            return False
        length = Lengths.loaded(cart.tar.lengths).length(cart.uid)
        if await self._context.volume.tar_size(cart) != length:
            return False
        self.tar_bytes = length
        return True

    async def _link_duplicates(self) -> None:
        self._cart = await link_duplicates(
            self._context.store,
            self._context.volume,
            self._cart,
            self._holder,
            lambda: self._context.share(self._cart, PAGE),
            hashed=self._resumed,
        )

    async def _find_in_place(self) -> bool:
        """Record what is on the volume and right, before the archive is asked for it.

        A crash has kept it from being recorded, or from being known to be on the disk.  Whether
        something that is right has got a duplicate meanwhile, in another cart, and is to be linked.
        """
        if not self._resumed:
            return False
        duplicates = False
        async for page in self._fetcher.unstaged_pages():
            self._sizes_unknown = self._sizes_unknown or any(file.size is None for file in page)
            async for right, recorded in self._record_found(page):
                self._fetcher.skip_recall(recorded)
                duplicates = duplicates or len(recorded) < right
        self._cart = await self._context.store.cart(self._cart.id) or self._cart
        return duplicates

    async def _record_found(self, files: Sequence[CartFile]) -> AsyncIterator[tuple[int, set[int]]]:
        """Record those of the files that are in their places; how many, and those positions."""
        async for right in self._context.volume.intact_files(self._cart, files):
            found = {file.position: file.hash_sum for file in right}
            recorded = await self._context.store.record_found(self._cart.id, self._holder, found)
            yield len(found), recorded

    async def _reserve(self, bytes_total: int) -> None:
        """Have room promised for all that can be had; a cart that lacks some gets no bundle."""
        volume_bytes = bytes_total
        if self._cart.bundle and not self._failures:
            index = await self._context.tar_indexes.build(self._cart)
            volume_bytes += index.lengths.length(self._cart.uid)
        await self._context.reserve(
            self._cart, self._holder, bytes_total=bytes_total, volume_bytes=volume_bytes
        )

    async def _record_staged(self, staged: Sequence[tuple[int, str]]) -> None:
        await self._context.store.record_staged(
            self._cart.id, self._holder, staged, now=self._context.now()
        )

    async def _record_failed(self, failed: Sequence[tuple[int, str]]) -> None:
        await self._context.store.record_file_errors(self._cart.id, self._holder, failed)

    # Finishing

    async def _finish(self) -> None:
        store, tar = self._context.store, None
        if self._cart.bundle:
            volume_bytes = await self._bundle()
        else:
            cart = await store.cart(self._cart.id)
            volume_bytes = cart.bytes_total or 0 if cart else 0
            tar = await self._build_tar_index()
        newest = await store.newest(self._cart.uid)
        if newest is not None and newest.id == self._cart.id:
            await self._context.volume.link(self._cart)
        else:
            await self._context.volume.clear_incoming(self._cart.id)
        await store.record_ready(
            self._cart.id,
            self._holder,
            volume_bytes=volume_bytes,
            now=self._context.now(),
            tar=tar,
        )

    async def _build_tar_index(self) -> TarFacts:
        """Lay out its tar, now that all is known; the first download finds the index there."""
        index = await self._context.tar_indexes.build(self._cart)
        self._context.tar_indexes.put(self._cart.id, index)
        return tar_facts(index, self._context.now())

    async def _bundle(self) -> int:
        """Write the tar, unless a start before this one has; give its length."""
        cart, volume, now = self._cart, self._context.volume, self._context.now()
        if self.tar_bytes is None:
            tar = await self._build_tar_index()
            await self._context.store.begin_bundling(cart.id, self._holder, now, tar)
            bundle = await self._context.tar_indexes.tar_below(replace(cart, tar=tar), cart.uid)
            length = bundle.length
            reader = TreeReader(volume.tree(cart), bundle.segments(0, length), root=volume.root)
            await volume.write_tar(cart, reader, length)
            self.tar_bytes = length
        else:
            await self._context.store.begin_bundling(cart.id, self._holder, now)
            await volume.drop_tree(cart)
        await self._context.store.record_bundled(cart.id, self._holder)
        return self.tar_bytes
