"""The commands of ``cartd-cmd`` on carts: fixit, verify, purge and dump.

:class:`Fixit` restages and shows the progress; :class:`Verify` compares files with their hashes;
:class:`Purge` deletes carts that have not been used; :func:`dump` prints all as YAML or JSON.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TextIO

import yaml
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.carts.delete import CannotRemove, Removal
from cartd.errors import escape
from cartd.integrity.repair import Orphans, Repair
from cartd.integrity.scrub import CartVerifier, Damage
from cartd.model import UNFINISHED, Cart, CartFile, CartStatus
from cartd.store import Store
from cartd.volume import Volume

POLL_INTERVAL = 0.5
"""Seconds between two polls of a cart that is being staged."""


class Fixit:
    """Fixes carts one by one; ``begin`` stages a cart unless another process does."""

    def __init__(
        self,
        store: Store,
        repair: Repair,
        begin: Callable[[int], object],
        clock: IReactorTime,
        out: TextIO,
    ) -> None:
        self._store = store
        self._repair = repair
        self._begin = begin
        self._clock = clock
        self._out = out

    async def fix(self, uid: str) -> bool:
        """Restage the newest cart of ``uid`` if needed; return whether it is ready."""
        cart = await self._store.carts.newest(uid)
        if cart is None:
            self._print(f"{uid}: no such cart")
            return False
        if cart.status == CartStatus.READY and not cart.is_partial and await self._is_whole(cart):
            self._print(f"{uid}: ready, nothing to fix")
            return True
        return await self.restore(cart, retry_failed=True)

    async def restore(
        self, cart: Cart, damaged: Sequence[int] = (), *, retry_failed: bool = False
    ) -> bool:
        """Restage missing files and those at the positions ``damaged``; return success.

        ``retry_failed``: also the failed files of a partial cart that is not damaged.
        """
        if cart.status not in UNFINISHED:
            await self._repair.restage(cart, damaged, retry_failed=retry_failed)
        cart = await self._watch(cart.id)
        self._print(f"{cart.display_uid}: {cart.status}{_remark(cart)}")
        return cart.status == CartStatus.READY

    async def _is_whole(self, cart: Cart) -> bool:
        if cart.bytes_total is None:
            return await self._repair.import_cart(cart)
        return await self._repair.is_intact(cart)

    async def _watch(self, cart_id: int) -> Cart:
        """Show the progress of the cart until it is finished, and return it.

        If another process stages it and dies or releases it, this process continues.
        """
        said = ""
        while True:
            cart = await self._store.carts.cart(cart_id)
            assert cart is not None
            self._show(cart)
            if cart.status not in UNFINISHED:
                return cart
            if cart.message not in ("", said):
                said = cart.message
                self._print(f"{cart.display_uid}: {said}")
            self._begin(cart_id)
            await deferLater(self._clock, POLL_INTERVAL)

    def _show(self, cart: Cart) -> None:
        if self._out.isatty():
            total = "?" if cart.bytes_total is None else f"{cart.bytes_total:,}"
            self._out.write(
                f"\r\x1b[K{cart.display_uid}: {cart.files_staged:,} of {cart.files_total:,} files, "
                f"{cart.bytes_staged:,} of {total} bytes"
            )
            self._out.flush()

    def _print(self, line: str) -> None:
        self._out.write(f"\r\x1b[K{line}\n" if self._out.isatty() else f"{line}\n")
        self._out.flush()


def _remark(cart: Cart) -> str:
    """Return what is wrong with a finished cart, to be appended to its status."""
    if cart.is_partial:
        return f", {cart.files_failed:,} of {_files(cart.files_total)} missing"
    return f", {cart.error}" if cart.error else ""


class Verify:
    """Verifies carts one by one; ``restore`` restages the damaged files of a cart."""

    def __init__(
        self,
        store: Store,
        verification: CartVerifier,
        orphans: Orphans,
        restore: Callable[[Cart, Sequence[int]], Awaitable[bool]] | None,
        out: TextIO,
        progress: TextIO,
        now: Callable[[], float],
    ) -> None:
        """Without ``restore`` nothing is changed; ``progress`` is used only if it is a terminal."""
        self._store = store
        self._verification = verification
        self._orphans = orphans
        self._restore = restore
        self._out = out
        self._progress = progress
        self._now = now

    async def all(self) -> bool:
        """Verify every ready cart, and look for orphans.

        Returns whether all is intact, or has been repaired.
        """
        carts = [
            cart for cart in await self._store.carts.active() if cart.status == CartStatus.READY
        ]
        right = [await self.cart(cart) for cart in reversed(carts)]
        return all([*right, await self._no_orphans()])

    async def _no_orphans(self) -> bool:
        found = await self._orphans.find()
        for orphan in found:
            self._print(f"directory {orphan.cart_id}: {orphan.size:,} bytes, belongs to no cart")
        if found and self._restore is not None:
            await self._orphans.remove(found)
            self._print(f"{len(found):,} directories removed")
        return not found or self._restore is not None

    async def named(self, uid: str) -> bool:
        """Verify the newest cart of ``uid``."""
        cart = await self._store.carts.newest(uid)
        if cart is None:
            self._print(f"{uid}: no such cart")
            return False
        return await self.cart(cart)

    async def cart(self, cart: Cart) -> bool:
        if cart.status != CartStatus.READY:
            self._print(f"{cart.display_uid}: not verified, its status is {cart.status}")
            return False
        begun = self._now()
        damages = await self._verification.damages(cart, self._counter(cart))
        if not damages:
            await self._store.durability.record_verified(cart.id, begun)
            files = _files(cart.files_total)
            if cart.is_partial:
                files = f"{cart.files_staged:,} of {files}"
            self._print(f"{cart.display_uid}: {files}, {_bytes(cart)} bytes, intact")
            return True
        now = await self._store.carts.cart(cart.id)
        if now is None or now.status != CartStatus.READY:
            self._print(f"{cart.display_uid}: was deleted or restaged in the meantime")
            return True
        self._report(cart, damages)
        if self._restore is None:
            return False
        if not await self._restore(cart, [damage.position for damage in damages]):
            return False
        # A file may be missing now that was in its bundle.
        cart = await self._store.carts.cart(cart.id) or cart
        # Verify again: the volume may have damaged the new files, too.
        return await self._is_repaired(cart)

    async def _is_repaired(self, cart: Cart) -> bool:
        begun = self._now()
        damages = await self._verification.damages(cart, self._counter(cart))
        if not damages:
            await self._store.durability.record_verified(cart.id, begun)
            self._print(f"{cart.uid}: repaired and intact")
            return True
        self._report(cart, damages)
        self._print(f"{cart.uid}: damaged again after the repair: check the volume's disk")
        return False

    def _report(self, cart: Cart, damages: Sequence[Damage]) -> None:
        for damage in damages:
            # A path may contain terminal control sequences.
            self._print(f"{cart.display_uid}: {escape(damage.path)} {damage.fault}")
        self._print(f"{cart.display_uid}: {len(damages):,} of {_files(cart.files_total)} damaged")

    def _counter(self, cart: Cart) -> Callable[[int], Awaitable[None]]:
        done = 0

        async def read(size: int) -> None:
            nonlocal done
            done += size
            if self._progress.isatty():
                self._progress.write(
                    f"\r\x1b[K{cart.display_uid}: {done:,} of {_bytes(cart)} bytes"
                )
                self._progress.flush()

        return read

    def _print(self, line: str) -> None:
        if self._progress.isatty():
            self._progress.write("\r\x1b[K")
            self._progress.flush()
        self._out.write(f"{line}\n")
        self._out.flush()


def _files(number: int) -> str:
    return f"{number:,} file" if number == 1 else f"{number:,} files"


def _bytes(cart: Cart) -> str:
    return "?" if cart.bytes_total is None else f"{cart.bytes_total:,}"


class Purge:
    """Deletes carts last used before the Unix time ``before``, and prints them to ``out``.

    A finished cart is evicted: it stays if it has been used in the meantime, or if its files cannot
    be removed.
    """

    def __init__(
        self, store: Store, removal: Removal, before: float, out: TextIO, *, dry_run: bool
    ) -> None:
        """``dry_run``: print only, delete nothing."""
        self._store = store
        self._removal = removal
        self._before = before
        self._out = out
        self._dry_run = dry_run

    async def run(self) -> None:
        """Delete the carts, least recently used first.

        :raises CannotRemove: the files of a second cart cannot be removed; the rest stays.
        """
        try:
            await self._delete_all()
        finally:
            await self._removal.wait_until_idle()

    async def _delete_all(self) -> None:
        failed = 0
        carts = [cart for cart in await self._store.carts.active() if cart.used < self._before]
        carts.sort(key=lambda cart: (cart.used, cart.id))
        if not carts:
            self._print("no cart to delete")
        for cart in carts:
            verb = "would delete" if self._dry_run else "deleting"
            self._print(f"{verb} {cart.display_uid} (cart {cart.id}, {cart.volume_bytes:,} bytes)")
            if self._dry_run:
                continue
            try:
                await self._delete(cart)
            except CannotRemove as error:
                failed += 1
                if failed > 1:
                    raise
                self._print(f"{error}; the cart stays")

    async def _delete(self, cart: Cart) -> None:
        while cart.status not in UNFINISHED:
            if await self._removal.evict(cart):
                return
            now = await self._store.carts.cart(cart.id)
            if now is None or now.status == CartStatus.DELETED or now.used >= self._before:
                return
            if now.evicting is not None:
                return  # the service is evicting it, and keeps it if it cannot be removed
            if now.used == cart.used:
                break
            cart = now  # the service writes access times late
        # It is unfinished, has no files of its own, or is being sent; a running download completes.
        await self._removal.delete(cart)

    def _print(self, line: str) -> None:
        print(line, file=self._out)


Row = dict[str, str]


async def dump(store: Store, volume: Volume, out: TextIO, *, as_json: bool) -> None:
    """Write the carts one after the other, and their files page by page.

    The keys, and that all values are text, are Pacifica Cartd's; new keys come after them.
    """
    form: Form = JsonForm(out) if as_json else YamlForm(out)
    for cart in await store.carts.active():
        form.begin(_cart_row(cart, volume))
        after = -1
        while files := await store.carts.files(cart.id, after=after):
            form.add_files([_file_row(cart, file) for file in files])
            after = files[-1].position
        form.end()
    form.finish()


class Form(Protocol):
    """Writes a list of carts; a cart without files has no key ``files``."""

    def begin(self, cart: Row) -> None: ...
    def add_files(self, files: Sequence[Row]) -> None: ...
    def end(self) -> None: ...
    def finish(self) -> None: ...


class JsonForm:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._before_cart = "["
        self._before_files = ""

    def begin(self, cart: Row) -> None:
        self._out.write(self._before_cart + json.dumps(cart).removesuffix("}"))
        self._before_cart = ",\n"
        self._before_files = ', "files": ['

    def add_files(self, files: Sequence[Row]) -> None:
        self._out.write(self._before_files + ", ".join(map(json.dumps, files)))
        self._before_files = ", "

    def end(self) -> None:
        self._out.write("]}" if self._before_files == ", " else "}")

    def finish(self) -> None:
        self._out.write("[]\n" if self._before_cart == "[" else "]\n")


class YamlForm:
    _dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    """libyaml's, where available: many times as fast."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._any = False
        self._before_files = ""

    def begin(self, cart: Row) -> None:
        self._out.write(self._text([cart]))
        self._any = True
        self._before_files = "  files:\n"

    def add_files(self, files: Sequence[Row]) -> None:
        self._out.write(self._before_files + textwrap.indent(self._text(files), "  "))
        self._before_files = ""

    def end(self) -> None:
        pass

    def finish(self) -> None:
        if not self._any:
            self._out.write("[]\n")

    def _text(self, rows: Sequence[Row]) -> str:
        text: str = yaml.dump(list(rows), Dumper=self._dumper, sort_keys=False, allow_unicode=True)
        return text


def _cart_row(cart: Cart, volume: Volume) -> Row:
    return _as_text(
        id=cart.id,
        cart_uid=cart.uid,
        bundle_path=_bundle_path(cart, volume),
        bundle=cart.bundle,
        creation_date=_date(cart.created),
        updated_date=_date(cart.updated),
        deleted_date=None,
        status=cart.status,
        error=cart.error,
        used_date=_date(cart.used),
        files_total=cart.files_total,
        files_staged=cart.files_staged,
        bytes_total=cart.bytes_total,
        bytes_staged=cart.bytes_staged,
        waits_since=None if cart.waits_since is None else _date(cart.waits_since),
        waits_for=cart.waits_for,
        tape_since=None if cart.tape_since is None else _date(cart.tape_since),
        tape_files=cart.tape_files,
        owner=cart.owner,
    )


def _bundle_path(cart: Cart, volume: Volume) -> object:
    """Return the path; empty unless ready, because only then the name is known to be valid."""
    if cart.status != CartStatus.READY:
        return ""
    return volume.paths.tar(cart) if cart.has_tar else volume.paths.tree(cart)


def _file_row(cart: Cart, file: CartFile) -> Row:
    return _as_text(
        id=file.id,
        cart=cart.id,
        file_name=file.archive_id,
        bundle_path=file.path,
        hash_type=file.hash_type,
        hash_value=file.hash_sum,
        status=file.status,
        error=file.error,
        position=file.position,
        size=file.size,
        mtime=file.mtime,
    )


def _as_text(**values: object) -> Row:
    return {key: str(value) for key, value in values.items()}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ")
