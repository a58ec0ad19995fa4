"""Bundles: carts that are stored as one tar, ``ROOT/ID/UID.tar``, instead of a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.errors import NoSpace, VolumeDamaged
from cartd.model import Cart, CartFile
from cartd.volume import files as found_files
from cartd.volume.base import VolumeBase
from cartd.volume.incoming import BLOCK, PartialFile
from cartd.volume.remove import remove_tree, rename_then_remove
from cartd.volume.rooted_fs import RootedFS

log = Logger()


class Source(Protocol):
    """A reader of the bytes of a bundle; called in threads."""

    def read(self, limit: int) -> bytes: ...
    def close(self) -> None: ...


class Bundles(VolumeBase):
    """The part of the volume that writes bundles and reads their headers."""

    async def stat_tar_members(
        self, cart: Cart, files: Iterable[CartFile]
    ) -> list[tuple[int, int, int]] | None:
        """Return (position, size, mtime) of each file in the bundle; None if one is missing."""
        wanted = {f"{cart.uid}/{file.path}": file.position for file in files}
        try:
            tar = self._paths.tar(cart)
        except ValueError:
            return None
        return await self._threads.run(
            self._confirm_missing, found_files.stat_tar_members, self._paths.root, tar, wanted
        )

    async def write_tar(self, cart: Cart, reader: Source, length: int) -> None:
        """Write the ``length`` bytes of ``reader`` as the cart's bundle, then remove its tree.

        The reader is closed in any case.  Raises :class:`VolumeDamaged` if it returns another
        number of bytes, the reader's own errors, and ``ValueError`` as :meth:`tar` does.
        """
        partial: PartialFile | None = None

        def release() -> None:
            if partial is not None:
                partial.discard()
            reader.close()

        try:
            partial = self._partial(cart, "tar", self._paths.tar(cart))
            await self._copy(reader, partial, length)
            await uncancellable(self._threads.run(self._commit_tar, cart, partial))
            await self.drop_tree(cart)
        finally:
            await uncancellable(self._threads.run(release))
            self._close_fs(cart.id)

    async def tar_size(self, cart: Cart) -> int | None:
        """Return the size of the cart's bundle, which is complete if it exists; else None."""
        try:
            tar = self._paths.tar(cart)
        except ValueError:
            return None
        found = await self._threads.run(
            self._confirm_missing, found_files.stat_file, self._paths.root, tar
        )
        return None if found is None else found[0]

    async def drop_tar(self, cart: Cart) -> None:
        """Remove the bundle of a cart, if it exists."""
        tar = self._paths.tar(cart)
        await self._change(tar, self._drop_tar, tar)

    async def drop_tree(self, cart: Cart) -> None:
        """Remove the tree of a cart that has a bundle."""
        tree = self._paths.tree(cart)
        try:
            await self._remove_in_slices(
                self._threads, tree, lambda should_stop: self._drop_tree(cart, should_stop)
            )
        except (OSError, NoSpace) as error:
            # The bundle is used from now on; the rest of the tree is removed with the cart.
            log.error("{tree} cannot be removed: {error}", tree=tree, error=error)

    async def _copy(self, reader: Source, partial: PartialFile, length: int) -> None:
        def copy_a_block() -> int:
            data = reader.read(BLOCK)
            partial.append(data)
            return len(data)

        copied = 0
        while step := await uncancellable(self._threads.run(copy_a_block)):
            copied += step
            if copied > length:
                break
        if copied != length:
            raise VolumeDamaged(
                f"the bundle has {copied} bytes or more where {length} were expected"
            )

    # The methods below run in threads.

    def _commit_tar(self, cart: Cart, partial: PartialFile) -> None:
        try:
            partial.commit(durable=True)
        except BaseException:
            # It may have its final name without being synced: it must not be used as the bundle.
            with suppress(OSError), RootedFS(self._paths.root) as fs:
                fs.unlink(self._paths.tar(cart))
            raise

    def _drop_tar(self, tar: Path) -> None:
        with RootedFS(self._paths.root) as fs:
            remove_tree(fs, tar)

    def _drop_tree(self, cart: Cart, should_stop: Callable[[], bool]) -> None:
        with RootedFS(self._paths.root) as fs:
            aside = self._paths.temporary(cart.id, "tree")
            rename_then_remove(fs, self._paths.tree(cart), aside, should_stop)
            remove_tree(fs, self._paths.incoming(cart.id), should_stop)
