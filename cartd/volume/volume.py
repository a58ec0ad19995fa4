"""The directory that holds the staged carts.

``ROOT/ID/UID/PATH`` is a staged file, ``ROOT/ID/UID.tar`` a bundle and ``ROOT/cartuids/UID`` a
link to either; ``ROOT/incoming/ID/`` holds what is incomplete or being removed.
Changes of the disk run in threads and end before their coroutine does, cancelled or not.
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
from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import BatchingThreadRunner, ThreadRunner
from cartd.errors import InvalidInput
from cartd.model import Cart, CartFile, DuplicateFile
from cartd.volume import files as found_files
from cartd.volume.bundles import Bundles
from cartd.volume.file_system import check_writable, prepare
from cartd.volume.incoming import IncomingFile
from cartd.volume.links import (
    LinkOccupiedError,
    LinksNotAllowedError,
    link_duplicates,
    place_link,
    remove_link,
)
from cartd.volume.locks import CartLocks, exclusive_lock
from cartd.volume.orphans import OrphanScan
from cartd.volume.remove import RemovalStopped, remove_one_file, remove_tree, rename_then_remove
from cartd.volume.rooted_fs import RootedFS
from cartd.volume.verify import HashVerification

P = ParamSpec("P")
T = TypeVar("T")
BATCH = 1000
"""Files that are processed in one call in a thread."""


class Volume(Bundles, HashVerification, CartLocks, OrphanScan):
    """All operations on the directory that holds the carts.

    Errors of the disk are :class:`~cartd.errors.NoSpace`, or ``OSError`` with the path below ROOT.
    While the directory is missing or is not the volume, nothing is created or removed there and no
    file counts as missing: methods raise :class:`~cartd.errors.VolumeUnavailable`.
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
        """``number`` is the identity of the volume; None: it is not checked.

        ``removal_threads`` remove carts; default: ``threads``.
        """
        super().__init__(root, threads, number, removal_threads=removal_threads)
        self._batch_threads = BatchingThreadRunner(threads)
        self._links_allowed = True

    def prepare(self) -> None:
        """Create the fixed directories and test the volume; blocks; raises ConfigError."""
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
        """The directory itself; links below it must not be followed."""
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
        """Return the consumer of the bytes of ``file``; raises ``ValueError`` as :meth:`member`."""
        final = self._paths.member(cart, file.path)
        partial = self._partial(cart, file.position, final)
        return IncomingFile(partial, checksum, file.mtime, self._threads, self._batch_threads)

    async def link_duplicates(
        self, cart: Cart, duplicates: Sequence[DuplicateFile]
    ) -> tuple[list[DuplicateFile], str]:
        """Create files of the cart as hard links to their duplicates.

        Return those that exist now, and the error for the first of the others, if any.
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
        """Remove leftovers of an interrupted staging, bundling or removal of the cart.

        ``include_staged``: also remove the cart's own directory, which holds foreign files.
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
        """Return (position, size, mtime) of each file, in order; None for a missing one."""
        found: list[tuple[int, int, int] | None] = []
        left = iter(files)
        while batch := list(islice(left, BATCH)):
            found += await self._threads.run(self._stat_files, cart, batch)
        return found

    def check_uid(self, cart: Cart) -> None:
        """Raise :class:`InvalidInput` if the cart's uid cannot be the name of a directory.

        Pacifica Cartd accepted such uids, but could not stage these carts either.
        """
        try:
            self._paths.tree(cart)
        except ValueError:
            raise InvalidInput("uid: cannot be the name of a directory") from None

    async def link(self, cart: Cart) -> None:
        """Point ``cartuids/UID`` at this cart; a failure is only logged."""
        try:
            fs = self._fs_of(cart)
            await self._change(self._paths.link(cart), place_link, self._paths, cart, fs)
        except LinkOccupiedError as error:
            self._log.warn(
                "{link} is not a symbolic link, or belongs to another uid; it is left unchanged",
                link=error,
            )
        except LinksNotAllowedError as error:
            if self._links_allowed:
                self._log.warn("Links to carts cannot be created: {reason}", reason=error)
            self._links_allowed = False
        self._close_fs(cart.id)

    async def unlink(self, cart: Cart) -> None:
        """Remove the link of the cart's uid, if it points to this cart."""
        await self._change(self._paths.link(cart), remove_link, self._paths, cart)

    async def remove_one_file(self, cart: Cart) -> bool:
        """Remove one file of the cart, to test whether its files can be removed.

        False, and nothing is removed, if the cart is being sent; nor is anything if this raises.
        Raises :class:`RemovalStopped`, as the rest could not be removed.
        """
        return await self._remove_in_slices(
            self._removal_threads,
            self._paths.cart(cart.id),
            lambda should_stop: self._remove_one_file(cart, should_stop),
        )

    async def remove(self, cart: Cart) -> bool:
        """Remove the cart's tree, bundle, link and incoming files; idempotent.

        False, and nothing is removed, if the cart is being sent.  Raises :class:`RemovalStopped`.
        """
        removed = await self._remove_in_slices(
            self._removal_threads,
            self._paths.cart(cart.id),
            lambda should_stop: self._remove(cart, should_stop),
        )
        self._close_fs(cart.id)
        return removed

    async def drop_files(self, cart: Cart, files: Sequence[CartFile]) -> None:
        """Remove those files from the cart's tree, if they exist."""
        try:
            tree = self._paths.tree(cart)
        except ValueError:
            return  # such a cart cannot have files on the volume
        await self._change(tree, self._drop, cart, files)

    async def free_space(self) -> int:
        """Return the bytes of the disk that are free for this process."""

        def probe() -> int:
            self._identity.check()
            return shutil.disk_usage(self._paths.root).free

        return await self._threads.run(probe)

    async def incoming_bytes(self) -> int:
        """Return the bytes of incomplete files, and of bundles whose trees are being removed."""
        return await self._threads.run(
            found_files.incoming_bytes, self._paths.root, self._paths.all_incoming
        )

    # The methods below run in threads.

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
                with suppress(ValueError):  # a file that cannot have that path does not exist
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
