"""What is on the volume of carts that the store may not know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from cartd.errors import InvalidInput
from cartd.manifest import check_uid
from cartd.shield import shielded
from cartd.threads import RunsInThread
from cartd.volume.identity import CART_ID, Identity
from cartd.volume.links import remove_link_of
from cartd.volume.partial import told_of
from cartd.volume.paths import VolumePaths
from cartd.volume.removal import remove_tree


@dataclass(frozen=True, slots=True)
class Stray:
    """What looks like a cart: ``ROOT/ID`` with a tree or bundle of one uid, or ``incoming/ID``."""

    cart_id: int
    size: int
    """Bytes of its files; what they share with others, by hard links, among them."""


class Strays:
    """The part of the volume that looks at carts by their ids alone."""

    _paths: VolumePaths
    _identity: Identity
    _threads: RunsInThread

    async def cart_ids(self) -> list[int]:
        """Ids, ascending, of which something is on the volume: carts, and what crashes left."""
        return await self._threads.run(self._ids)

    async def strays(self, cart_ids: Sequence[int]) -> list[Stray]:
        """Of these ids, those of which nothing is there but what cartd makes."""
        return await self._threads.run(self._strays, cart_ids)

    async def set_aside(self, cart_ids: Sequence[int]) -> list[Path]:
        """Take the directories of these out of their places, quickly; what is to be removed."""
        return await shielded(self._threads.run(self._set_aside, cart_ids))

    async def remove_aside(self, aside: Sequence[Path]) -> None:
        """Remove what was set aside; that may take long."""
        await shielded(self._threads.run(self._remove_aside, aside))

    # What follows runs in threads.

    def _ids(self) -> list[int]:
        self._identity.check()
        ids: set[int] = set()
        for directory in (self._paths.root, self._paths.all_incoming):
            with os.scandir(directory) as entries:
                ids.update(
                    int(entry.name)
                    for entry in entries
                    if CART_ID.fullmatch(entry.name) and entry.is_dir()
                )
        return sorted(ids)

    def _strays(self, cart_ids: Sequence[int]) -> list[Stray]:
        found = []
        for cart_id in cart_ids:
            place, incoming = self._paths.cart(cart_id), self._paths.incoming(cart_id)
            if not os.path.lexists(place) or _uid_in(place) is not None:
                found.append(Stray(cart_id, _size_of(place, incoming)))
        return found

    def _set_aside(self, cart_ids: Sequence[int]) -> list[Path]:
        self._identity.check()
        aside: list[Path] = []
        for cart_id in cart_ids:
            place, incoming = self._paths.cart(cart_id), self._paths.incoming(cart_id)
            if uid := _uid_in(place):
                remove_link_of(self._paths, cart_id, uid)
            with told_of(place, self._paths.root):
                incoming.mkdir(exist_ok=True)
                if os.path.lexists(place):
                    place.rename(self._paths.temporary(cart_id, "stray"))
                aside += incoming.iterdir()
        return aside

    def _remove_aside(self, aside: Sequence[Path]) -> None:
        for one in aside:
            with told_of(one, self._paths.root):
                remove_tree(one)
            with suppress(OSError):
                one.parent.rmdir()  # unless somebody needs it by now


def _uid_in(place: Path) -> str | None:
    """The uid whose tree or bundle is all that is in ``place``, if cartd can have made that.

    An empty text if nothing is in it.
    """
    uids = set()
    try:
        if not S_ISDIR(place.lstat().st_mode):
            return None
        for entry in place.iterdir():
            mode = entry.lstat().st_mode
            if S_ISREG(mode) and entry.name.endswith(".tar"):
                uids.add(check_uid(entry.name.removesuffix(".tar")))
            elif S_ISDIR(mode):
                uids.add(check_uid(entry.name))
            else:
                return None
    except (OSError, InvalidInput):
        return None
    return (uids or {""}).pop() if len(uids) < 2 else None


def _size_of(*trees: Path) -> int:
    """Bytes of all regular files, each once whatever names it has."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for tree in trees:
        for directory, _, names in os.walk(tree):
            for name in names:
                try:
                    status = os.lstat(Path(directory, name))
                except OSError:
                    continue
                if S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_size
    return total
