"""Orphans: carts on the volume that may be missing in the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from cartd.deferreds.tasks import uncancellable
from cartd.errors import InvalidInput
from cartd.model import check_uid
from cartd.volume.base import VolumeBase
from cartd.volume.files import list_entries
from cartd.volume.identity import CART_ID
from cartd.volume.links import remove_link_of
from cartd.volume.remove import remove_tree
from cartd.volume.rooted_fs import RootedFS, translate_disk_errors


@dataclass(frozen=True, slots=True)
class Orphan:
    """What looks like a cart: ``ROOT/ID`` with a tree or bundle of one uid, or ``incoming/ID``."""

    cart_id: int
    size: int
    """Bytes of its files, including those shared with other carts by hard links."""


class OrphanScan(VolumeBase):
    """The part of the volume that finds carts by their ids alone."""

    async def cart_ids(self) -> list[int]:
        """Return the ids, ascending, that have a directory: carts, and leftovers of crashes."""
        return await self._threads.run(self._ids)

    async def orphans(self, cart_ids: Sequence[int]) -> list[Orphan]:
        """Return those of the ids whose directories contain only what cartd creates."""
        return await self._threads.run(self._orphans, cart_ids)

    async def set_aside(self, cart_ids: Sequence[int]) -> list[Path]:
        """Rename the directories of these ids, quickly; return the paths to be removed."""
        return await uncancellable(self._threads.run(self._set_aside, cart_ids))

    async def remove_aside(self, aside: Sequence[Path]) -> None:
        """Remove what was set aside; that may take long."""
        for one in aside:
            await self._remove_in_slices(
                self._removal_threads, one, partial(self._remove_one_aside, one)
            )

    # The methods below run in threads.

    def _ids(self) -> list[int]:
        self._identity.check()
        ids: set[int] = set()
        with RootedFS(self._paths.root) as fs:
            for directory in (self._paths.root, self._paths.all_incoming):
                with fs.directory(directory) as opened, os.scandir(opened) as found:
                    ids.update(
                        int(entry.name)
                        for entry in found
                        if CART_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                    )
        return sorted(ids)

    def _orphans(self, cart_ids: Sequence[int]) -> list[Orphan]:
        found = []
        with RootedFS(self._paths.root) as fs:
            for cart_id in cart_ids:
                place, incoming = self._paths.cart(cart_id), self._paths.incoming(cart_id)
                if not fs.exists(place) or _uid_in(fs, place) is not None:
                    found.append(Orphan(cart_id, _size_of(fs, place, incoming)))
        return found

    def _set_aside(self, cart_ids: Sequence[int]) -> list[Path]:
        self._identity.check()
        aside: list[Path] = []
        with RootedFS(self._paths.root) as fs:
            for cart_id in cart_ids:
                place, incoming = self._paths.cart(cart_id), self._paths.incoming(cart_id)
                if uid := _uid_in(fs, place):
                    remove_link_of(self._paths, cart_id, uid)
                with translate_disk_errors(place, self._paths.root):
                    fs.ensure_directory(incoming)
                    if fs.exists(place):
                        fs.rename(place, self._paths.temporary(cart_id, "orphan"))
                    aside += (incoming / name for name, _ in list_entries(fs, incoming))
        return aside

    def _remove_one_aside(self, one: Path, should_stop: Callable[[], bool]) -> None:
        with RootedFS(self._paths.root) as fs:
            remove_tree(fs, one, should_stop)
            with suppress(OSError):
                fs.rmdir(one.parent)  # unless it is in use again


def _uid_in(fs: RootedFS, place: Path) -> str | None:
    """Return the uid if ``place`` contains only the tree or bundle of one, as cartd creates it.

    '' if it is empty; None if it contains something else.
    """
    uids = set()
    try:
        with fs.directory(place) as opened, os.scandir(opened) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    uids.add(check_uid(entry.name))
                elif entry.is_file(follow_symlinks=False) and entry.name.endswith(".tar"):
                    uids.add(check_uid(entry.name.removesuffix(".tar")))
                else:
                    return None
    except (OSError, InvalidInput):
        return None
    return (uids or {""}).pop() if len(uids) < 2 else None


def _size_of(fs: RootedFS, *trees: Path) -> int:
    """Return the bytes of all regular files, each counted once however many names it has."""
    seen: set[tuple[int, int]] = set()
    total = 0
    directories = list(trees)
    while directories:
        directory = directories.pop()
        for name, status in list_entries(fs, directory):
            if S_ISDIR(status.st_mode):
                directories.append(directory / name)
            elif S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total
