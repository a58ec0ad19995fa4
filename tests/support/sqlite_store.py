"""The real store on SQLite, whose queries run at once, in the calling thread.

For tests on a test clock, which then never have to wait for a query.  The fixture ``sqlite_store``
is in :mod:`tests.support.database_fixtures`.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, event
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.manifest import Entry, Manifest
from cartd.model import UNRESTRICTED, Cart, CartFile, FileStatus, Viewer
from cartd.store import Store, connections, database, sync
from cartd.store.connections import Connection, Pool, WorkerThread
from cartd.store.engine import reading_engine, writing_engine
from tests.support.databases import sqlite_url
from tests.support.volume_parts import result_of


class SqliteFile:
    """A SQLite file and its engines, which are reused: they hold the compiled statements."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "cartd.sqlite3"
        self._empty = directory / "empty.sqlite3"
        sync(sqlite_url(self._empty))
        with closing(sqlite3.connect(self._empty)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # a later change would fsync
        self.reading = _without_sync(reading_engine(sqlite_url(self.path)))
        self.writing = _without_sync(writing_engine(sqlite_url(self.path)))

    def clean(self) -> None:
        """Replace the file by one with cartd's tables and no carts."""
        for left in self.path.parent.glob(f"{self.path.name}*"):
            left.unlink()
        shutil.copy(self._empty, self.path)


class SqliteStore(Store):
    """A store on a SQLite file, and methods to set up and to read what a test needs."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file.path
        self._fingerprints = count()
        with (
            patch.object(database, "Pool", _PoolInThisThread),
            patch.object(database, "reading_engine", lambda _: file.reading),
            patch.object(database, "writing_engine", lambda _: file.writing),
        ):
            super().__init__(sqlite_url(file.path), _ReactorInThisThread())

    def post(
        self,
        uid: str,
        files: Mapping[str, bytes],
        *,
        bundle: bool = False,
        owner: str | None = None,
        now: float = 0.0,
        max_failed: int | None = None,
    ) -> Cart:
        """Post a new cart whose files are named by their ids."""
        listed = [
            Entry(name, f"dir/{name}", "sha1", hashlib.sha1(data).hexdigest())
            for name, data in files.items()
        ]
        fingerprint = f"{next(self._fingerprints):064}"  # unique: the same files are a new cart
        viewer = UNRESTRICTED if owner is None else Viewer(owner, sees_all=False)
        manifest = Manifest(listed, bundle, fingerprint, max_failed=max_failed)
        posting = self.carts.post(uid, manifest, bundle=bundle, now=now, viewer=viewer)
        cart, new = result_of(posting)
        assert new
        return cart

    def cart(self, cart_id: int) -> Cart:
        """Return the cart as it is now."""
        cart = result_of(self.carts.cart(cart_id))
        assert cart is not None
        return cart

    def files(self, cart_id: int) -> list[CartFile]:
        return result_of(self.carts.files(cart_id, limit=1_000_000))

    def staged(self, cart_id: int) -> list[str]:
        """Return the ids of the files that are recorded as staged."""
        files = self.files(cart_id)
        return [one.archive_id for one in files if one.status is FileStatus.STAGED]

    def pending_removal(self) -> set[int]:
        return result_of(self.removals.pending_removal())

    def lease_to(self, cart: Cart, holder: str, *, until: float) -> Cart:
        """Lease the cart to ``holder``, as if the present holder had died."""
        others = result_of(self.leases.holders())
        leased = result_of(self.leases.claim(cart.id, holder, now=0.0, until=until, dead=others))
        assert leased is not None
        return leased

    def held(self) -> dict[int, tuple[str, float]]:
        """Return the holders of carts and the ends of their leases."""
        rows = self.query("SELECT id, lease_holder, lease_until FROM cart WHERE lease_holder != ''")
        return {cart_id: (holder, until) for cart_id, holder, until in rows}

    def reserve(self, cart: Cart, size: int) -> None:
        """Reserve the space of a cart, as before its first file is fetched."""
        self.lease_to(cart, "me", until=60.0)
        reserving = self.progress.reserve(cart.id, "me", bytes_total=size, volume_bytes=size)
        assert result_of(reserving)

    def from_pacifica(self, cart: Cart) -> None:
        """Make the cart one that was posted to Pacifica Cartd."""
        self.query("UPDATE cart SET fingerprint = NULL WHERE id = ?", cart.id)

    def restage(self, cart: Cart, lost: Collection[int]) -> None:
        """Put a finished cart back to staging because of the files at these positions."""
        assert result_of(self.progress.restage(cart.id, lost=sorted(lost), now=0.0))

    def query(self, statement: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        """Run one SQL statement on a connection of its own; return its rows."""
        with closing(sqlite3.connect(self._file, isolation_level=None)) as connection:
            return connection.execute(statement, parameters).fetchall()

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """Move the database's file away while the block runs.

        Queries over a connection that is open succeed until the first transaction has failed.
        """
        away = self._file.with_name("away")
        self._file.rename(away)
        try:
            yield
        finally:
            away.rename(self._file)


class _ReactorInThisThread(Clock):
    def callFromThread(self, callable: Callable[..., object], *args: object, **kw: object) -> None:
        callable(*args, **kw)


class _WorkerInThisThread(WorkerThread):
    """Runs its jobs at once."""

    def __init__(self, reactor: object) -> None:
        self.ended = Deferred()

    def do(self, work: Callable[[], None]) -> None:
        work()

    def quit(self) -> None:
        self.ended.callback(None)


class _PoolInThisThread(Pool):
    def _open(self) -> Deferred[Connection]:
        with patch.object(connections, "WorkerThread", _WorkerInThisThread):
            return super()._open()


def _without_sync(engine: Engine) -> Engine:
    """Make the connections of ``engine`` commit without fsync; return it."""
    event.listen(engine, "connect", _do_not_sync)
    return engine


def _do_not_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF").close()
