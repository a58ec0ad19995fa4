"""Staging of one cart, from manifest to ready: deduplicate, query, reserve, recall, fetch, bundle.

Strategy: files that another cart has on the volume are linked.  For the others, the archive is
queried for the state of every file before a byte is fetched, so that the cart's size is known and
space for all of it is reserved at once.  Then files on disk are fetched, while files on tape are
announced, all of them, and polled with backoff.  Files are read from the store page by page: a
cart of a million files takes no more memory than one of a thousand.

If files have failed, but no more than the manifest permits, the cart becomes ready without them: a
partial cart.  It stays a tree even if a bundle is wanted, which is written once no file is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from twisted.logger import Logger

from cartd.deferreds.tasks import Batcher
from cartd.errors import PathCollision
from cartd.integrity.repair import invalidate_missing, may_have_files
from cartd.model import (
    Cart,
    CartFile,
    CartFormat,
    DuplicateFile,
    FileFailure,
    FileStatus,
    SecondHash,
    TarFacts,
)
from cartd.sending.reader import TreeReader
from cartd.staging import StagingContext
from cartd.staging.fetch import PAGE, Failures, FileFetcher, Staged
from cartd.status.pace import Sample
from cartd.store import Store
from cartd.tar.bag import bag_facts
from cartd.tar.index import Lengths
from cartd.tar.virtual_tar import tar_facts
from cartd.volume import Volume

log = Logger()


class StagingPipeline:
    """The staging of one cart, under a lease that ``holder`` holds."""

    def __init__(self, context: StagingContext, cart: Cart, holder: str, *, resumed: bool) -> None:
        self._context = context
        self._cart = cart
        self._holder = holder
        self._resumed = resumed
        """Whether files may be on the volume that the store has not recorded."""
        self._sizes_unknown = False
        """Whether sizes of files were unknown at the start, as of Pacifica Cartd's carts."""
        self.tar_bytes: int | None = None
        """Size of its tar, once that is on the volume in place of the files; else None."""
        self._staged: Batcher[Staged] = Batcher(self._record_staged, context.clock.seconds)
        self._failures = Failures(self._record_failed, context.clock.seconds, cart.max_failed)
        self._fetcher = FileFetcher(context, cart, holder, self._staged.add, self._failures)

    async def run(self) -> None:
        """Stage all files that are not staged yet, and make the cart ready.

        :raises InvalidInput: the cart's uid is not possible as a file name on the volume.
        :raises FilesFailed: more files could not be fetched than may be missing; all others are on
            the volume.
        :raises PathCollision: two paths name the same file on the volume.
        :raises FileFailed: the volume failed while a file was written.
        :raises NoSpace: the volume has no space.
        :raises OutageTooLong: the archive was unavailable for too long.
        :raises LeaseLost: another process has taken over the cart.
        """
        self._context.volume.paths.check_uid(self._cart)
        self._context.breaker.resume_cart(self._cart)
        await self._forget_failures()
        await self._remove_leftovers()
        if collision := await self._context.volume.name_collisions.find(self._all_pages):
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
        bytes_staged = self._cart.bytes_staged
        bytes_total = bytes_staged + await self._fetcher.query_states(bytes_staged)
        if self._sizes_unknown:
            await self._find_in_place()
        await self._reserve(bytes_total)
        try:
            await self._fetcher.fetch()
        finally:
            await self.flush()
        await self._settle_failures()
        await self._finish()

    @property
    def files_failed(self) -> int:
        """The number of files that have failed in this attempt."""
        return len(self._failures)

    async def _forget_failures(self) -> None:
        """Try the files that failed in an earlier attempt again, as all that are not staged."""
        if self._cart.files_failed:
            await self._context.store.progress.retry_failed(self._cart.id, self._holder)
            self._cart = replace(self._cart, files_failed=0)

    async def _all_pages(self) -> AsyncIterator[list[CartFile]]:
        after = -1
        while page := await self._context.store.carts.files(
            self._cart.id, after=after, limit=self._context.share(self._cart, PAGE)
        ):
            yield page
            after = page[-1].position

    async def flush(self) -> None:
        """Record which files have been staged, and which have failed, so far."""
        await self._staged.flush()
        await self._failures.flush()

    def idle(self) -> float:
        """For how many seconds no file was fetched, although nothing prevented it."""
        return self._fetcher.idle()

    def sample(self) -> Sample | None:
        """Return what has been transferred and what is left; None before the transfers begin."""
        return self._fetcher.sample()

    async def reconcile_volume(self) -> None:
        """Record the intact files on the volume, and remove the others: the cart ends in error.

        Unrecorded files were placed just before the failure, or before a crash.
        """
        volume, cart = self._context.volume, self._cart
        await volume.incoming.clear(cart.id)
        async for page in self._fetcher.unstaged_pages():
            recorded = {at async for _, found in self._record_found(page) for at in found}
            await volume.removal.drop_files(
                cart, [one for one in page if one.position not in recorded]
            )

    async def _remove_leftovers(self) -> None:
        """Remove files of earlier attempts that cannot be used.

        A bundle is written when all files are staged: if they are not, the bundle was damaged, or
        Pacifica Cartd has left it behind.  A partial cart has none.
        """
        cart, volume = self._cart, self._context.volume
        await volume.incoming.clear(
            cart.id, include_staged=not (self._resumed and may_have_files(cart))
        )
        if cart.bundle and cart.files_staged < cart.files_total:
            await volume.bundles.drop(cart)

    async def _tar_is_complete(self) -> bool:
        """Whether the cart is a bundle whose tar was written before a stop, and is complete."""
        cart = self._cart
        if not cart.bundle or cart.files_staged < cart.files_total:
            return False
        # The facts of a tar are recorded before it is written.
        if cart.tar is None:
            return False
        length = Lengths.loaded(cart.tar.lengths).length(cart.uid)
        if cart.format is CartFormat.BAG:
            facts = self._context.tar_indexes.bag_facts(cart)
            if facts is None:
                return False
            length = facts.length(cart.uid)
        if await self._context.volume.bundles.size(cart) != length:
            return False
        self.tar_bytes = length
        return True

    async def _link_duplicates(self, positions: range | None = None) -> None:
        self._cart = await link_duplicates(
            self._context.store,
            self._context.volume,
            self._cart,
            self._holder,
            lambda: self._context.share(self._cart, PAGE),
            hashed=self._resumed,
            also_hash=self._context.also_hash,
            on_linked=self._context.metrics.files_staged.labels("linked").inc,
            among=positions,
        )

    async def _find_in_place(self) -> bool:
        """Record intact files on the volume that are not recorded, instead of fetching them again.

        A crash has prevented their recording, or they may not have reached the disk before it.
        Return whether some of them have a duplicate in another cart meanwhile, and are to be
        linked.
        """
        if not self._resumed:
            return False
        duplicates = False
        async for page in self._fetcher.unstaged_pages():
            self._sizes_unknown = self._sizes_unknown or any(file.size is None for file in page)
            async for intact, recorded in self._record_found(page):
                self._fetcher.skip_recall(recorded)
                duplicates = duplicates or len(recorded) < intact
        self._cart = await self._context.store.carts.cart(self._cart.id) or self._cart
        return duplicates

    async def _record_found(self, files: Sequence[CartFile]) -> AsyncIterator[tuple[int, set[int]]]:
        """Record the intact ones of the files; yield their number and the recorded positions."""
        async for intact in self._context.volume.verification.intact_files(
            self._cart, files, self._context.also_hash
        ):
            found = {file.position: file.hash_sum for file in intact}
            second = {
                file.position: SecondHash(file.also_hash_type, file.also_hash_sum)
                for file in intact
                if file.also_hash_type is not None and file.also_hash_sum is not None
            }
            recorded = await self._context.store.dedup.record_found(
                self._cart.id, self._holder, found, second
            )
            self._context.metrics.files_staged.labels("kept").inc(len(recorded))
            yield len(found), recorded

    async def _reserve(self, bytes_total: int) -> None:
        """Reserve space for all available files; a cart with failed files gets no bundle."""
        volume_bytes = bytes_total
        if self._cart.bundle and not self._failures:
            volume_bytes += await self._context.tar_indexes.length_to_reserve(self._cart)
        await self._context.reserve(
            self._cart, self._holder, bytes_total=bytes_total, volume_bytes=volume_bytes
        )

    async def _record_staged(self, staged: Sequence[Staged]) -> None:
        await self._context.store.progress.record_staged(
            self._cart.id,
            self._holder,
            [(position, hash_sum) for position, hash_sum, _ in staged],
            now=self._context.now(),
            second={position: also for position, _, also in staged if also is not None},
        )
        self._context.metrics.files_staged.labels("fetched").inc(len(staged))

    async def _record_failed(self, failed: Sequence[FileFailure]) -> None:
        await self._context.store.progress.record_file_errors(self._cart.id, self._holder, failed)
        for one in failed:
            self._context.metrics.file_failures.labels(one.problem).inc()

    # Failed files

    async def _settle_failures(self) -> None:
        """Decide whether the cart may be ready without the files that have failed.

        :raises FilesFailed: more have failed than may.
        """
        if self._failures and self._cart.max_failed is not None:
            await self._link_failed()
        await self._failures.check()
        if self._failures:
            await self._drop_failed()
            self._cart = await self._context.store.carts.cart(self._cart.id) or self._cart

    async def _link_failed(self) -> None:
        """Link those of the failed files that another cart has staged meanwhile."""
        store, before = self._context.store, self._cart
        pages = dict.fromkeys(at // PAGE for at in self._failures.positions)
        for page in pages:
            await self._link_duplicates(range(page * PAGE, (page + 1) * PAGE))
        if self._cart is not before:
            left = await store.progress.recount_failed(self._cart.id, self._holder)
            self._failures.keep(left)
            self._cart = replace(self._cart, files_failed=len(left))
            if not left:  # a tar is written after all
                await self._reserve(self._cart.bytes_staged)

    async def _drop_failed(self) -> None:
        """Remove what is in the places of failed files, such as a damaged file of that name."""
        after = -1
        while page := await self._context.store.statuses.files(
            self._cart.id, status=FileStatus.ERROR, after=after, limit=PAGE
        ):
            await self._context.volume.removal.drop_files(self._cart, page)
            after = page[-1].position

    # Finishing

    async def _finish(self) -> None:
        store, tar = self._context.store, None
        if self._cart.has_tar:
            volume_bytes = await self._bundle()
        else:
            cart = await store.carts.cart(self._cart.id)
            volume_bytes = cart.bytes_staged if cart else 0
            tar = await self._build_tar_index()
        newest = await store.carts.newest(self._cart.uid)
        if newest is not None and newest.id == self._cart.id:
            await self._context.volume.links.place(self._cart)
        else:
            await self._context.volume.incoming.clear(self._cart.id)
        await store.progress.record_ready(
            self._cart.id,
            self._holder,
            volume_bytes=volume_bytes,
            now=self._context.now(),
            tar=tar,
            may_lack=self._cart.max_failed is not None,
        )

    async def _build_tar_index(self) -> TarFacts:
        """Build the index of its tar and keep it for the first download."""
        index = await self._context.tar_indexes.build(self._cart)
        self._context.tar_indexes.put(self._cart.id, index)
        return tar_facts(index, self._context.now())

    async def _bundle(self) -> int:
        """Write the tar, unless it is there already; return its length."""
        volume, now = self._context.volume, self._context.now()
        if self.tar_bytes is None:
            cart = self._cart = replace(self._cart, tar=await self._build_tar_index())
            bag = None
            if cart.format is CartFormat.BAG:
                bag = await self._build_bag()
                cart = replace(cart, bag=bag)
            await self._context.store.progress.begin_bundling(
                cart.id, self._holder, now, cart.tar, bag
            )
            tar = await self._context.tar_indexes.tar_below(cart, cart.uid, cart.format)
            reader = TreeReader(
                volume.paths.tree(cart), tar.segments(0, tar.length), root=volume.paths.root
            )
            await volume.bundles.write(cart, reader, tar.length)
            self.tar_bytes = tar.length
        else:
            cart = self._cart
            await self._context.store.progress.begin_bundling(cart.id, self._holder, now)
            await volume.bundles.drop_tree(cart)
        await self._context.store.progress.record_bundled(cart.id, self._holder)
        return self.tar_bytes

    async def _build_bag(self) -> str:
        """Build the index of its bag, keep it to write the bag, and return the facts of the bag."""
        cart, tar_indexes = self._cart, self._context.tar_indexes
        index = await tar_indexes.build(cart, CartFormat.BAG)
        tar_indexes.put(cart.id, index, CartFormat.BAG)
        return bag_facts(index, self._context.now(), cart.bag).dumped()


async def link_duplicates(
    store: Store,
    volume: Volume,
    cart: Cart,
    holder: str,
    page: Callable[[], int],
    *,
    hashed: bool,
    also_hash: str | None,
    on_linked: Callable[[int], object],
    among: range | None = None,
) -> Cart:
    """Link files of ``cart`` to those of other carts, ``page()`` files at a time.

    All of its unstaged files, or only those at the positions ``among``.

    Return the updated cart.  A file that cannot be linked is fetched later.  If a duplicate is
    removed before its link is recorded, the next one is used.

    ``hashed``: link only to files whose hash is right.  For a cart that is restaged, which may have
    been damaged: the damage must not come back from a cart that shares the file.  A new cart trusts
    the size, as downloads do.  ``also_hash``: the type of the second hash that is computed of files
    that lack one.  ``on_linked`` is called with the number of files of each page.

    :raises LeaseLost: another process has taken over the cart.
    """
    positions = range(cart.files_total) if among is None else among
    linked, first, end = 0, positions.start, min(positions.stop, cart.files_total)
    unlinked = ""
    while first < end:
        positions = range(first, first + page())
        first = positions.stop
        duplicates = await store.dedup.duplicates(cart.id, positions)
        while duplicates:
            if hashed or also_hash is not None:
                duplicates = await _hash_duplicates(volume, duplicates, also_hash, every=hashed)
            shared, reason = await volume.links.link_duplicates(cart, duplicates)
            gone = await store.dedup.record_linked(cart.id, holder, shared)
            linked += len(shared) - len(gone)
            on_linked(len(shared) - len(gone))
            unlinked = unlinked or reason
            again = await store.dedup.duplicates(cart.id, positions) if gone else []
            duplicates = [duplicate for duplicate in again if duplicate.position in gone]
        if unlinked and not linked:
            break  # if no link of a page works (no hard links here), none of the next will
    if unlinked:
        log.info("{cart}: some duplicates cannot be linked: {reason}", cart=cart, reason=unlinked)
    if linked:
        log.info("{cart}: {number} files linked to other carts' files", cart=cart, number=linked)
        return await store.carts.cart(cart.id) or cart
    return cart


async def _hash_duplicates(
    volume: Volume, duplicates: Sequence[DuplicateFile], also_hash: str | None, *, every: bool
) -> list[DuplicateFile]:
    """Read ``every`` duplicate, or those that lack a second hash.

    Return all of them, with their second hashes, except damaged ones.
    """
    read = [one for one in duplicates if every or one.missing_hash_type(also_hash)]
    positions = {one.position for one in read}
    unread = [one for one in duplicates if one.position not in positions]
    return unread + await volume.verification.intact_duplicates(read, also_hash)
