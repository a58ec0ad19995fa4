"""Sums over all carts, for metrics: each query reads one row for every cart that is not deleted."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from cartd.model import CartStatus
from cartd.store.database import Database
from cartd.store.tables import cart, dirty_files, time_of

_BY_STATUS = (
    select(
        cart.c.status,
        func.count().label("carts"),
        func.sum(cart.c.files_total).label("files"),
        func.sum(cart.c.files_staged).label("staged"),
        func.sum(cart.c.files_failed).label("failed"),
        func.sum(cart.c.tape_files).label("on_tape"),
        func.min(cart.c.creation_date).label("oldest"),
    )
    .where(cart.c.deleted_date.is_(None))
    .group_by(cart.c.status)
)
_DIRTY = select(func.count().label("number")).select_from(dirty_files)


@dataclass(frozen=True, slots=True)
class StatusTotals:
    """The carts of one status, and their files."""

    carts: int
    files: int
    staged: int
    failed: int
    on_tape: int
    """When last recorded."""
    oldest: float
    """When the oldest of the carts was posted."""


class Totals:
    """Queries for sums over all carts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_status(self) -> dict[CartStatus, StatusTotals]:
        """Return the sums of each status that a cart has."""
        return {
            CartStatus(row.status): StatusTotals(
                int(row.carts),
                int(row.files),
                int(row.staged),
                int(row.failed),
                int(row.on_tape or 0),
                time_of(row.oldest),
            )
            for row in await self._database.rows(_BY_STATUS)
        }

    async def dirty_rows(self) -> int:
        """Return the number of rows of files that may not have reached the disk."""
        [row] = await self._database.rows(_DIRTY)
        return int(row.number)
