"""Bundles: carts that are stored as one tar, ``ROOT/ID/UID.tar``, instead of a tree."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import NoSpace, VolumeDamaged, raise_if_transient
from cartd.model import Cart, CartFile
from cartd.volume.identity import VolumeIdentity
from cartd.volume.incoming import BLOCK, PartialFile
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import DiskThreads, remove_tree, rename_then_remove
from cartd.volume.rooted_fs import MkdirFSCache, RootedFS
from cartd.volume.verify import FileFacts, stat_file

log = Logger()


class Source(Protocol):
    """A reader of the bytes of a bundle; called in threads."""

    def read(self, limit: int) -> bytes: ...
    def close(self) -> None: ...


class Bundles:
    """Writes bundles, reads their headers, and removes them."""

    def __init__(
        self,
        paths: VolumePaths,
        identity: VolumeIdentity,
        threads: ThreadRunner,
        disk: DiskThreads,
        fs_cache: MkdirFSCache,
    ) -> None:
        self._paths = paths
        self._identity = identity
        self._threads = threads
        self._disk = disk
        self._fs_cache = fs_cache

    async def stat_members(self, cart: Cart, files: Iterable[CartFile]) -> list[FileFacts] | None:
        """Return the facts of each file in the bundle, in order; None if one is missing."""
        wanted = {f"{cart.tar_prefix}{file.path}": file.position for file in files}
        try:
            tar = self._paths.tar(cart)
        except ValueError:
            return None
        return await self._threads.run(
            self._identity.confirm_missing, stat_tar_members, self._paths.root, tar, wanted
        )

    async def write(self, cart: Cart, reader: Source, length: int) -> None:
        """Write the ``length`` bytes of ``reader`` as the cart's bundle, then remove its tree.

        The reader is closed in any case.  Raises :class:`VolumeDamaged` if it returns another
        number of bytes, the reader's own errors, and ``ValueError`` as
        :meth:`~cartd.volume.paths.VolumePaths.tar` does.
        """
        partial: PartialFile | None = None

        def release() -> None:
            if partial is not None:
                partial.discard()
            reader.close()

        try:
            partial = PartialFile(
                self._paths.temporary(cart.id, "tar"),
                self._paths.tar(cart),
                self._fs_cache.get(cart.id),
            )
            await self._copy(reader, partial, length)
            await uncancellable(self._threads.run(self._commit_tar, cart, partial))
            await self.drop_tree(cart)
        finally:
            await uncancellable(self._threads.run(release))
            self._fs_cache.close(cart.id)

    async def size(self, cart: Cart) -> int | None:
        """Return the size of the cart's bundle, which is complete if it exists; else None."""
        try:
            tar = self._paths.tar(cart)
        except ValueError:
            return None
        found = await self._threads.run(
            self._identity.confirm_missing, stat_file, self._paths.root, tar
        )
        return None if found is None else found.st_size

    async def drop(self, cart: Cart) -> None:
        """Remove the bundle of a cart, if it exists."""
        tar = self._paths.tar(cart)
        await self._disk.run(tar, self._drop_tar, tar)

    async def drop_tree(self, cart: Cart) -> None:
        """Remove the tree of a cart that has a bundle."""
        tree = self._paths.tree(cart)
        try:
            await self._disk.run_in_slices(
                tree, lambda should_stop: self._drop_tree(cart, should_stop)
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


def stat_tar_members(root: Path, path: Path, wanted: Mapping[str, int]) -> list[FileFacts] | None:
    """Return the facts of the members of a tar in ``wanted``, which has positions, in its order.

    None if the tar cannot be read from its first header to its last, or a member is missing.
    """
    found: dict[int, FileFacts] = {}
    try:
        with (
            RootedFS(root) as fs,
            os.fdopen(fs.open_file(path), "rb") as opened,
            tarfile.open(fileobj=opened, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                if member.isreg() and (position := wanted.get(member.name)) is not None:
                    found[position] = FileFacts(position, member.size, int(member.mtime // 1))
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
    except (OSError, ValueError, tarfile.TarError) as error:
        raise_if_transient(error)
        return None
    if len(found) < len(wanted):
        return None
    return [found[position] for position in wanted.values()]
