"""A store in memory, for tests of its callers.

It answers at once; a test may let calls fail, or hold a lease as another process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cartd.errors import LeaseLost, Unavailable
from cartd.model import (
    UNFINISHED,
    UNRESTRICTED,
    Cart,
    CartFile,
    CartStatus,
    DuplicateFile,
    FileStatus,
    TarFacts,
    Viewer,
)
from cartd.store import Carts, Dedup, Durability, Leases, Progress, Removals, Space, Store
from cartd.store.durability import DirtyRows
from cartd.tar.index import Members
from tests.support.built_tars import Member, columns

MTIME = 1_234_567_890
"""Of every file."""


class MemoryStore(Store, Carts, Leases, Progress, Removals, Space, Durability, Dedup):
    """Carts, files and leases as in the tables; the next ``failing_calls`` calls fail.

    It is each of its own components, whose methods have different names.
    """

    def __init__(self) -> None:
        self.carts = self.leases = self.progress = self.removals = self
        self.space = self.durability = self.dedup = self
        self.cart_rows: dict[int, Cart] = {}
        self.rows: dict[int, list[CartFile]] = {}
        self.lease_rows: dict[int, tuple[str, float]] = {}
        self.claim_count = 0
        self.unremoved: set[int] = set()
        """Carts that are deleted, and not removed from the volume yet."""
        self.failing_calls: float = 0

    def put(self, uid: str, files: Mapping[str, bytes], *, bundle: bool = False) -> Cart:
        """Post a cart whose files are named by their ids."""
        cart_id = len(self.cart_rows) + 1
        total = len(files)
        self.cart_rows[cart_id] = Cart(
            cart_id, uid, CartStatus.STAGING, 0, 0, 0, bundle=bundle, files_total=total
        )
        self.rows[cart_id] = [
            CartFile(n, name, f"dir/{name}", "sha1", hashlib.sha1(data).hexdigest())
            for n, (name, data) in enumerate(files.items())
        ]
        return self.cart_rows[cart_id]

    def set_owner(self, cart_id: int, owner: str) -> Cart:
        """Set the user who posted the cart."""
        self._change(cart_id, owner=owner)
        return self.cart_rows[cart_id]

    def staged(self, cart_id: int) -> list[str]:
        """Return the ids of the files that are recorded as staged."""
        return [one.archive_id for one in self.rows[cart_id] if one.status is FileStatus.STAGED]

    def invalidate(self, cart_id: int, position: int) -> None:
        """Put a ready cart back to staging because of one file."""
        self._change_file(cart_id, position, status=FileStatus.WAITING)
        size = self.rows[cart_id][position].size or 0
        staged = self.cart_rows[cart_id].volume_bytes - size
        self._change(cart_id, status=CartStatus.STAGING, bytes_staged=staged)

    def _check_call(self, cart_id: int = 0, holder: str = "") -> None:
        if self.failing_calls:
            self.failing_calls -= 1
            raise Unavailable("The database is unavailable")
        if holder and self.lease_rows.get(cart_id, ("", 0))[0] != holder:
            raise LeaseLost(f"Cart {cart_id} was deleted or taken over by another process")

    def _change(self, cart_id: int, **values: Any) -> None:
        self.cart_rows[cart_id] = replace(self.cart_rows[cart_id], **values)

    def _change_file(self, cart_id: int, position: int, **values: Any) -> None:
        self.rows[cart_id][position] = replace(self.rows[cart_id][position], **values)

    async def cart(self, cart_id: int) -> Cart | None:
        self._check_call()
        return self.cart_rows.get(cart_id)

    async def newest(self, uid: str) -> Cart | None:
        self._check_call()
        found = await self.carts_for(UNRESTRICTED, uid)
        return found[0] if found else None

    async def claimable(self, holder: str, *, now: float, dead: Collection[str] = ()) -> list[int]:
        self._check_call()
        return [
            cart_id for cart_id in self.cart_rows if self._may_claim(cart_id, holder, now, dead)
        ]

    def _may_claim(self, cart_id: int, holder: str, now: float, dead: Collection[str]) -> bool:
        held, ends = self.lease_rows.get(cart_id, (holder, now))
        may = held in (holder, *dead) or ends <= now
        return may and self.cart_rows[cart_id].status in UNFINISHED

    async def files(
        self, cart_id: int, *, after: int = -1, limit: int = 2000, unstaged: bool = False
    ) -> list[CartFile]:
        self._check_call()
        wanted = [
            file
            for file in self.rows[cart_id]
            if file.position > after and not (unstaged and file.status is FileStatus.STAGED)
        ]
        return wanted[:limit]

    async def files_at(self, cart_id: int, positions: Sequence[int]) -> list[CartFile]:
        self._check_call()
        rows = [self.rows[cart_id][position] for position in positions]
        return [one for one in rows if one.status is not FileStatus.STAGED]

    async def members(self, cart_id: int, positions: range) -> Members:
        self._check_call()
        rows = self.rows[cart_id][positions.start : positions.stop]
        return columns(
            [
                Member(one.path, one.size or 0, one.mtime or 0, one.hash_type, one.hash_sum)
                for one in rows
            ]
        )

    async def claim(
        self, cart_id: int, holder: str, *, now: float, until: float, dead: Collection[str] = ()
    ) -> Cart | None:
        self._check_call()
        self.claim_count += 1
        if not self._may_claim(cart_id, holder, now, dead):
            return None
        self.lease_rows[cart_id] = holder, until
        return self.cart_rows[cart_id]

    async def holders(self) -> dict[str, float]:
        self._check_call()
        return dict(sorted(self.lease_rows.values()))

    async def dirty_holders(self) -> set[str]:
        self._check_call()
        return set()

    async def dirty_rows_of_others(self, cart_id: int, holder: str) -> DirtyRows:
        self._check_call()
        return {}

    async def abandoned_dirty_rows(
        self, holder: str, *, dead: Collection[str], now: float
    ) -> DirtyRows:
        self._check_call()
        return {}

    async def take_over_dirty_rows(
        self, holder: str, cache: str, *, dead: Collection[str], now: float, until: float
    ) -> int:
        self._check_call()
        return 0

    async def renew(self, holder: str, until: float) -> set[int]:
        self._check_call()
        held = {cart_id for cart_id, lease in self.lease_rows.items() if lease[0] == holder}
        self.lease_rows |= dict.fromkeys(held, (holder, until))
        return held

    async def release(self, holder: str, cart_id: int) -> None:
        self._check_call()
        if self.lease_rows.get(cart_id, ("",))[0] == holder:
            del self.lease_rows[cart_id]

    async def release_all(self, holder: str) -> None:
        self._check_call()
        self.lease_rows = {key: held for key, held in self.lease_rows.items() if held[0] != holder}

    async def record_states(
        self, cart_id: int, holder: str, states: Sequence[tuple[int, int, int]]
    ) -> None:
        self._check_call(cart_id, holder)
        for position, size, mtime in states:
            self._change_file(cart_id, position, size=size, mtime=mtime)

    async def reserve(
        self,
        cart_id: int,
        holder: str,
        *,
        bytes_total: int,
        volume_bytes: int,
        limit: int | None = None,
    ) -> bool:
        self._check_call(cart_id, holder)
        self._change(cart_id, bytes_total=bytes_total, volume_bytes=volume_bytes)
        return True

    async def record_staged(
        self, cart_id: int, holder: str, staged: Sequence[tuple[int, str]], *, now: float
    ) -> None:
        self._check_call(cart_id, holder)
        for position, _ in staged:
            self._change_file(cart_id, position, status=FileStatus.STAGED)
        self._change(cart_id, files_staged=len(self.staged(cart_id)))

    async def invalidate_files(self, cart_id: int, holder: str, positions: Sequence[int]) -> None:
        self._check_call(cart_id, holder)
        for position in positions:
            self._change_file(cart_id, position, status=FileStatus.WAITING)
        self._change(cart_id, files_staged=len(self.staged(cart_id)))

    async def record_file_errors(
        self, cart_id: int, holder: str, failed: Sequence[tuple[int, str]]
    ) -> None:
        self._check_call(cart_id, holder)
        for position, message in failed:
            self._change_file(cart_id, position, status=FileStatus.ERROR, error=message)

    async def record_error(
        self,
        cart_id: int,
        holder: str,
        message: str,
        *,
        position: int | None,
        file_error: str,
        now: float,
        volume_bytes: int | None = None,
        rest_unknown: bool = False,
    ) -> None:
        self._check_call(cart_id, holder)
        if position is not None:
            self._change_file(cart_id, position, status=FileStatus.ERROR, error=file_error)
        if volume_bytes is None:
            volume_bytes = self.cart_rows[cart_id].bytes_staged
        if rest_unknown:
            volume_bytes = max(volume_bytes, self.cart_rows[cart_id].volume_bytes)
        self._end(cart_id, status=CartStatus.ERROR, error=message, volume_bytes=volume_bytes)

    async def begin_waiting(self, holder: str, since: float, cause: str) -> None:
        self._check_call()
        for cart_id, (held, _) in self.lease_rows.items():
            if held == holder and self.cart_rows[cart_id].status is CartStatus.STAGING:
                begun = self.cart_rows[cart_id].waits_since
                self._change(
                    cart_id, waits_since=since if begun is None else begun, waits_for=cause
                )

    async def end_waiting(self, holder: str) -> None:
        self._check_call()
        for cart_id, (held, _) in self.lease_rows.items():
            if held == holder:
                self._change(cart_id, waits_since=None, waits_for=None)

    async def record_tape(self, cart_id: int, holder: str, files: int, *, now: float) -> None:
        self._check_call()
        since = (self.cart_rows[cart_id].tape_since or now) if files else None
        self._change(cart_id, tape_since=since, tape_files=files or None)

    async def recently_staged_file(self, other_than: str) -> str | None:
        self._check_call()
        for cart_id in reversed(self.rows):
            names = [name for name in self.staged(cart_id) if name != other_than]
            if names and self.cart_rows[cart_id].status is not CartStatus.DELETED:
                return names[0]
        return None

    async def begin_bundling(
        self, cart_id: int, holder: str, now: float, tar: TarFacts | None = None
    ) -> None:
        self._check_call(cart_id, holder)
        self._record_tar(cart_id, tar)

    async def record_ready(
        self,
        cart_id: int,
        holder: str,
        *,
        volume_bytes: int,
        now: float,
        tar: TarFacts | None = None,
    ) -> None:
        self._check_call(cart_id, holder)
        self._record_tar(cart_id, tar)
        self._end(cart_id, status=CartStatus.READY, volume_bytes=volume_bytes)

    async def record_tar(self, cart_id: int, tar: TarFacts) -> None:
        self._check_call()
        self._record_tar(cart_id, tar)

    def _record_tar(self, cart_id: int, tar: TarFacts | None) -> None:
        before = self.cart_rows[cart_id].tar
        if before and tar and (before.layout, before.digest) == (tar.layout, tar.digest):
            tar = replace(tar, since=before.since)
        self._change(cart_id, tar=tar or before)

    async def record_bundled(self, cart_id: int, holder: str) -> None:
        self._check_call(cart_id, holder)

    async def duplicates(self, cart_id: int, positions: range) -> list[DuplicateFile]:
        self._check_call()
        staged = {
            (file.archive_id, file.hash_type, file.hash_sum): (other, file)
            for other in self.cart_rows.values()
            if other.id != cart_id and not other.bundle and other.status is not CartStatus.DELETED
            for file in self.rows[other.id]
            if file.status is FileStatus.STAGED
        }
        found = []
        for file in self.rows[cart_id][positions.start : positions.stop]:
            there = staged.get((file.archive_id, file.hash_type, file.hash_sum))
            if there and file.hash_sum and file.status is not FileStatus.STAGED:
                other, duplicate = there
                assert duplicate.size is not None
                assert duplicate.mtime is not None
                at = (other.id, other.uid, duplicate.path, duplicate.size, duplicate.mtime)
                hashed = (file.hash_type, file.hash_sum)
                found.append(DuplicateFile(file.position, file.path, 0, *at, *hashed))
        return found

    async def record_found(self, cart_id: int, holder: str, found: Mapping[int, str]) -> set[int]:
        duplicates = await self.duplicates(
            cart_id, range(min(found, default=0), max(found, default=0) + 1)
        )
        alone = set(found).difference(duplicate.position for duplicate in duplicates)
        await self.record_staged(cart_id, holder, [(at, found[at]) for at in alone], now=0)
        return alone

    async def record_linked(
        self, cart_id: int, holder: str, linked: Sequence[DuplicateFile]
    ) -> set[int]:
        self._check_call(cart_id, holder)
        gone = {
            duplicate.position
            for duplicate in linked
            if self.cart_rows[duplicate.staged_cart].status is CartStatus.DELETED
        }
        linked = [duplicate for duplicate in linked if duplicate.position not in gone]
        for duplicate in linked:
            self._change_file(
                cart_id,
                duplicate.position,
                status=FileStatus.STAGED,
                size=duplicate.size,
                mtime=duplicate.mtime,
            )
        staged = self.cart_rows[cart_id].bytes_staged + sum(duplicate.size for duplicate in linked)
        self._change(cart_id, bytes_staged=staged, volume_bytes=staged)
        return gone

    async def begin_eviction(self, seen: Cart, token: str) -> bool:
        self._check_call()
        now = self.cart_rows[seen.id]
        may = now.status in (CartStatus.READY, CartStatus.ERROR) and now.evicting is None
        if may and now.used == seen.used:
            self._change(seen.id, evicting=token)
            return True
        return False

    async def end_eviction(self, cart_id: int, token: str) -> None:
        self._check_call()
        if self.cart_rows[cart_id].evicting == token:
            self._change(cart_id, evicting=None)

    async def evicting(self) -> dict[int, str]:
        self._check_call()
        return {cart.id: cart.evicting for cart in self.cart_rows.values() if cart.evicting}

    async def mark_deleted(self, cart_id: int, now: float) -> bool:
        self._check_call()
        self._end(cart_id, status=CartStatus.DELETED, evicting=None)
        self.unremoved.add(cart_id)
        return True

    async def record_removed(self, cart_id: int, now: float) -> int:
        self._check_call()
        if cart_id not in self.unremoved:
            return 0
        self.unremoved.remove(cart_id)
        return self.cart_rows[cart_id].volume_bytes

    async def pending_removal(self) -> set[int]:
        self._check_call()
        return set(self.unremoved)

    async def active(self) -> list[Cart]:
        living = [one for one in self.cart_rows.values() if one.status is not CartStatus.DELETED]
        return living[::-1]

    async def carts_for(self, viewer: Viewer, uid: str) -> list[Cart]:
        living = [one for one in self.cart_rows.values() if one.status is not CartStatus.DELETED]
        seen = [one for one in living if viewer.sees_all or one.owner == viewer.owner]
        return [cart for cart in reversed(seen) if cart.uid == uid]

    async def deleted_among(self, cart_ids: Sequence[int]) -> set[int]:
        known = [self.cart_rows[cart_id] for cart_id in cart_ids if cart_id in self.cart_rows]
        return {cart.id for cart in known if cart.status is CartStatus.DELETED}

    def _end(self, cart_id: int, **values: Any) -> None:
        nothing = dict.fromkeys(["waits_since", "waits_for", "tape_since", "tape_files"])
        self._change(cart_id, **nothing, **values)
        self.lease_rows.pop(cart_id, None)
