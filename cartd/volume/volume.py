"""The directory that holds the staged carts.

``ROOT/ID/UID/PATH`` is a staged file, ``ROOT/ID/UID.tar`` a bundle and ``ROOT/cartuids/UID`` a
link to either; ``ROOT/incoming/ID/`` holds what is not whole yet, or is being removed.
What changes the disk runs in threads and ends before its coroutine does, cancelled or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.logger import Logger

from cartd.checksum import Checksum
from cartd.errors import InvalidInput
from cartd.model import Cart, CartFile, DuplicateFile
from cartd.rooted_fs import RootedFS
from cartd.threads import ThreadRunner
from cartd.uncancellable import uncancellable
from cartd.volume import files as found_files
from cartd.volume.bundles import Bundles
from cartd.volume.check import check_writable, prepare
from cartd.volume.hard_links import link_duplicates
from cartd.volume.incoming import IncomingFile
from cartd.volume.links import LinkOccupiedError, LinksNotAllowedError, place_link, remove_link
from cartd.volume.locks import CartLocks, exclusive_lock
from cartd.volume.orphans import OrphanScan
from cartd.volume.remove import RemovalStopped, remove_one_file, remove_tree, rename_then_remove
from cartd.volume.thread_batching import BatchingThreadRunner
from cartd.volume.verify import HashVerification

P = ParamSpec("P")
T = TypeVar("T")
BATCH = 1000
"""Files that one trip to a thread looks at."""


class Volume(Bundles, HashVerification, CartLocks, OrphanScan):
    """Where the carts are, and all that is done to it.

    Errors of the disk are :class:`~cartd.errors.NoSpace`, or ``OSError`` with the path below ROOT.
    While another directory is in the volume's place, or none, nothing is made in it, nothing is
    removed, and nothing is said to be missing: that is :class:`~cartd.errors.VolumeUnavailable`.
    """

    _log = Logger()

    def __init__(
        self,
        root: Path,
        threads: ThreadRunner,
        number: int | None = None,
        *,
        removal_threads: ThreadRunner | None = None,
    ) -> None:
        """``number`` is what the volume is known by; without one it is never away.

        ``removal_threads`` are the threads that remove carts; without them ``threads`` do.
        """
        super().__init__(root, threads, number, removal_threads=removal_threads)
        self._batch_threads = BatchingThreadRunner(threads)
        self._links_allowed = True

    def prepare(self) -> None:
        """Make what must be there and try it; blocks.  Raises :class:`ConfigError`."""
        prepare(self._paths)

    async def check(self) -> None:
        """Raises :class:`VolumeUnavailable` if the directory is not the volume now."""
        await self._threads.run(self._identity.check)

    async def check_writable(self) -> None:
        """Raises :class:`VolumeNotWritable` if no file can be written, tried with one, and
        synced."""

        def probe() -> None:
            self._identity.check()
            check_writable(self._paths)

        await uncancellable(self._threads.run(probe))

    @property
    def root(self) -> Path:
        """The directory itself: no link below it is to be followed."""
        return self._paths.root

    def tree(self, cart: Cart) -> Path:
        """``ROOT/ID/UID``."""
        return self._paths.tree(cart)

    def tar(self, cart: Cart) -> Path:
        """``ROOT/ID/UID.tar``; raises ``ValueError`` if that name would exceed 255 bytes."""
        return self._paths.tar(cart)

    def member(self, cart: Cart, path: str) -> Path:
        """``ROOT/ID/UID/PATH``; raises ``ValueError`` for a path that cannot be in the tree."""
        return self._paths.member(cart, path)

    def incoming(self, cart: Cart, file: CartFile, checksum: Checksum) -> IncomingFile:
        """Where the bytes of ``file`` go; raises ``ValueError`` as :meth:`member` does."""
        final = self._paths.member(cart, file.path)
        partial = self._partial(cart, file.position, final)
        return IncomingFile(partial, checksum, file.mtime, self._threads, self._batch_threads)

    async def link_duplicates(
        self, cart: Cart, duplicates: Sequence[DuplicateFile]
    ) -> tuple[list[DuplicateFile], str]:
        """Give the cart those files by hard links to their twins.

        Which now are in their places, and why the first of the others is not, if there are any.
        """
        linked: list[DuplicateFile] = []
        reason = ""
        fs = self._fs_of(cart)
        for first in range(0, len(duplicates), BATCH):
            batch = duplicates[first : first + BATCH]
            more, why = await uncancellable(
                self._threads.run(link_duplicates, self._paths, cart, batch, fs)
            )
            linked += more
            reason = reason or why
        return linked, reason

    async def clear_incoming(self, cart_id: int, *, include_staged: bool = False) -> None:
        """Remove what an interrupted staging, bundling or removal has left of the cart.

        ``include_staged``: and whatever is in its place already, which is not its own.
        """
        await self._remove_in_slices(
            self._threads,
            self._paths.incoming(cart_id),
            lambda should_stop: self._clear(cart_id, include_staged, should_stop),
        )
        self._close_fs(cart_id)

    async def stat_files(
        self, cart: Cart, files: Iterable[CartFile]
    ) -> list[tuple[int, int, int] | None]:
        """(position, size, mtime) of each file, in their order; none for what is not there."""
        found: list[tuple[int, int, int] | None] = []
        left = iter(files)
        while batch := list(islice(left, BATCH)):
            found += await self._threads.run(self._stat_files, cart, batch)
        return found

    def check_uid(self, cart: Cart) -> None:
        """Raises :class:`InvalidInput` if no directory can be called by the cart's uid.

        Pacifica Cartd took such uids, but could have staged none of these carts either.
        """
        try:
            self._paths.tree(cart)
        except ValueError:
            raise InvalidInput("uid: cannot be the name of a directory") from None

    async def link(self, cart: Cart) -> None:
        """Point ``cartuids/UID`` at this cart; says in the log why it cannot, and goes on."""
        try:
            fs = self._fs_of(cart)
            await self._change(self._paths.link(cart), place_link, self._paths, cart, fs)
        except LinkOccupiedError as error:
            self._log.warn(
                "{link} is no symbolic link, or that of another uid, and is left as it is",
                link=error,
            )
        except LinksNotAllowedError as error:
            if self._links_allowed:
                self._log.warn("No links to carts are made: {reason}", reason=error)
            self._links_allowed = False
        self._close_fs(cart.id)

    async def unlink(self, cart: Cart) -> None:
        """Remove the link of the cart's uid, if it points to this cart."""
        await self._change(self._paths.link(cart), remove_link, self._paths, cart)

    async def remove_one_file(self, cart: Cart) -> bool:
        """Remove one file of the cart, to see whether its files can be removed.

        False, and nothing is removed, if somebody is sending it; nor is anything if this raises.
        Raises :class:`RemovalStopped`, as the rest could not be removed.
        """
        return await self._remove_in_slices(
            self._removal_threads,
            self._paths.cart(cart.id),
            lambda should_stop: self._remove_one_file(cart, should_stop),
        )

    async def remove(self, cart: Cart) -> bool:
        """Remove the cart's tree, bundle and link, and what is incoming; again does no harm.

        False, and nothing is removed, if somebody is sending it.  Raises :class:`RemovalStopped`.
        """
        removed = await self._remove_in_slices(
            self._removal_threads,
            self._paths.cart(cart.id),
            lambda should_stop: self._remove(cart, should_stop),
        )
        self._close_fs(cart.id)
        return removed

    async def drop_files(self, cart: Cart, files: Sequence[CartFile]) -> None:
        """Remove those files of the cart's tree that are there."""
        try:
            tree = self._paths.tree(cart)
        except ValueError:
            return  # of a cart that cannot be on the volume nothing is there
        await self._change(tree, self._drop, cart, files)

    async def free_space(self) -> int:
        """Bytes of the disk that this process may still fill."""

        def probe() -> int:
            self._identity.check()
            return shutil.disk_usage(self._paths.root).free

        return await self._threads.run(probe)

    async def incoming_bytes(self) -> int:
        """Bytes on the disk of files that are not whole yet, and of bundles in their trees' place.

        A bundle counts while its tree is being removed.
        """
        return await self._threads.run(
            found_files.incoming_bytes, self._paths.root, self._paths.all_incoming
        )

    # What follows runs in threads.

    def _clear(self, cart_id: int, include_staged: bool, should_stop: Callable[[], bool]) -> None:
        self._identity.check()
        with RootedFS(self._paths.root) as fs:
            if include_staged:
                old = self._paths.temporary(cart_id, "old")
                rename_then_remove(fs, self._paths.cart(cart_id), old, should_stop)
            remove_tree(fs, self._paths.incoming(cart_id), should_stop)

    def _remove_one_file(self, cart: Cart, should_stop: Callable[[], bool]) -> bool:
        if should_stop():
            raise RemovalStopped
        self._identity.check()
        directory = self._paths.cart(cart.id)
        with exclusive_lock(directory) as acquired:
            if acquired:
                with RootedFS(self._paths.root) as fs:
                    remove_one_file(fs, directory)
        return acquired

    def _remove(self, cart: Cart, should_stop: Callable[[], bool]) -> bool:
        self._identity.check()
        with exclusive_lock(self._paths.cart(cart.id)) as acquired:
            if acquired:
                with suppress(ValueError):  # a uid that cannot be a name has no link
                    remove_link(self._paths, cart)
                aside = self._paths.temporary(cart.id, "removed")
                with RootedFS(self._paths.root) as fs:
                    rename_then_remove(fs, self._paths.cart(cart.id), aside, should_stop)
                    remove_tree(fs, self._paths.incoming(cart.id), should_stop)
        return acquired

    def _drop(self, cart: Cart, files: Sequence[CartFile]) -> None:
        self._identity.check()
        with RootedFS(self._paths.root) as fs:
            if not fs.is_directory(self._paths.tree(cart)):
                return
            for file in files:
                with suppress(ValueError):  # what cannot have that path is not there
                    remove_tree(fs, self._paths.member(cart, file.path))

    def _stat_files(self, cart: Cart, batch: list[CartFile]) -> list[tuple[int, int, int] | None]:
        paths: list[Path | None] = []
        for file in batch:
            try:
                paths.append(self._paths.member(cart, file.path))
            except ValueError:
                paths.append(None)
        found = found_files.stat_files(self._paths.root, paths)
        if None in found:
            self._identity.check()
        return [
            None if one is None else (file.position, *one)
            for file, one in zip(batch, found, strict=True)
        ]
