"""Reads the store's tables beside the service."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, NullPool, and_, create_engine, or_, select

from cartd.store.tables import cart, file


@dataclass(frozen=True, slots=True)
class FileRow:
    id: int
    path: str
    status: str
    size: int | None
    linked_to: int | None
    also_hash: str | None
    """Its second hash."""


@dataclass(frozen=True, slots=True)
class CartRow:
    id: int
    uid: str
    status: str
    error: str
    bundle: bool
    lives: bool
    holder: str | None
    evicting: str | None
    files_staged: int
    bytes_staged: int
    bytes_linked: int
    volume_bytes: int
    files: tuple[FileRow, ...]

    @property
    def staged(self) -> list[FileRow]:
        return [file for file in self.files if file.status == "staged"]

    @property
    def in_tar(self) -> bool:
        return self.bundle and self.status == "ready"

    @property
    def names(self) -> list[str]:
        """Return the names that its directory must contain once it is finished."""
        if self.in_tar:
            return [f"{self.uid}.tar"]
        return [f"{self.uid}/{file.path}" for file in self.staged]


def read_carts(
    database: str,
    *,
    after: int | None = None,
    and_of: Collection[int] = (),
    with_files: bool = True,
) -> dict[int, CartRow]:
    """Return, by id, carts that are not deleted, those after ``after``, and those ``and_of``."""
    wanted = or_(cart.c.deleted_date.is_(None), cart.c.id.in_(and_of))
    if after is not None:
        wanted = or_(wanted, cart.c.id > after)
    with _engine(database).connect() as connection:
        carts = connection.execute(select(cart).where(wanted)).all()
        files: dict[int, list[FileRow]] = defaultdict(list)
        if with_files:
            columns = (
                *(file.c.id, file.c.bundle_path, file.c.status, file.c.size, file.c.linked_to),
                file.c.also_hash_value,
            )
            of_carts = and_(file.c.cart_id == cart.c.id, wanted)
            rows = select(cart.c.id, *columns).where(of_carts).order_by(file.c.position)
            for cart_id, *row in connection.execute(rows):
                files[cart_id].append(FileRow(*row))
    return {row.id: _cart(row, tuple(files[row.id])) for row in carts}


@lru_cache
def _engine(database: str) -> Engine:
    return create_engine(database, poolclass=NullPool)


def _cart(row: Any, files: tuple[FileRow, ...]) -> CartRow:
    return CartRow(
        row.id,
        row.cart_uid,
        row.status,
        row.error,
        row.bundle,
        row.deleted_date is None,
        row.lease_holder,
        row.evicting,
        row.files_staged,
        row.bytes_staged,
        row.bytes_linked,
        row.volume_bytes,
        files,
    )
