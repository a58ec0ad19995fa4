"""Carts and files in a database: SQLite, or PostgreSQL by its URL.

Strategy: SQLAlchemy Core statements, made once and run over a few alchimia connections that are
kept open; rows are written in batches.  ``Store`` is for the reactor, ``schema`` for the start and
the commands, which may block.
"""

from __future__ import annotations

from typing import Any

from cartd.store.archive_waits import Waits
from cartd.store.cart_ids import KnownIds
from cartd.store.carts import Carts
from cartd.store.database import Database, too_few_connections
from cartd.store.dedup import Twins
from cartd.store.durability import Syncs
from cartd.store.leases import Leases
from cartd.store.lookups import Lookups
from cartd.store.progress import Progress
from cartd.store.removals import Removals
from cartd.store.retention import Retention
from cartd.store.schema import schema_state, sync, wait_for_database
from cartd.store.schema_version import Condition, SchemaState, UpgradeError
from cartd.store.space import Space
from cartd.store.verification import Verified
from cartd.store.viewers import Askers
from cartd.store.volume_record import VolumeRecord, volume_record

__all__ = [
    "Condition",
    "SchemaState",
    "Store",
    "UpgradeError",
    "VolumeRecord",
    "schema_state",
    "sync",
    "too_few_connections",
    "volume_record",
    "wait_for_database",
]


class Store(
    Askers,
    Carts,
    KnownIds,
    Leases,
    Progress,
    Removals,
    Retention,
    Space,
    Syncs,
    Twins,
    Verified,
    Waits,
):
    """All that outlives the process.

    Every method raises ``Unavailable`` while the database is away.  A cancelled one has written
    nothing, unless it was already committing.
    """

    def __init__(self, url: str, reactor: Any) -> None:
        """Connects to nothing yet; raises ``ConfigError`` for a URL that cannot be used."""
        self._database = Database(url, reactor)
        self._lookups = Lookups(self._database)

    async def close(self) -> None:
        """Wait for what was asked, close all connections and end their threads."""
        await self._database.close()
