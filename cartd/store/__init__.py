"""Carts and files in a database: SQLite, or PostgreSQL by its URL.

Strategy: SQLAlchemy Core statements, built once and run over a few persistent alchimia connections;
rows are written in batches.  ``Store`` is for the reactor; ``schema`` blocks and is for the start
and the commands.
"""

from __future__ import annotations

from typing import Any

from cartd.metrics import UNEXPOSED, Metrics
from cartd.store.carts import Carts
from cartd.store.database import Database, connection_limit_warning
from cartd.store.dedup import Dedup
from cartd.store.durability import Durability
from cartd.store.leases import Leases
from cartd.store.progress import Progress
from cartd.store.removals import Removals
from cartd.store.schema import (
    SchemaCondition,
    SchemaState,
    UpgradeError,
    VolumeRecord,
    load_form_key,
    schema_state,
    sync,
    volume_record,
    wait_for_database,
)
from cartd.store.space import Space
from cartd.store.statuses import Statuses
from cartd.store.totals import Totals

__all__ = [
    "Carts",
    "Dedup",
    "Durability",
    "Leases",
    "Progress",
    "Removals",
    "SchemaCondition",
    "SchemaState",
    "Space",
    "Statuses",
    "Store",
    "UpgradeError",
    "VolumeRecord",
    "connection_limit_warning",
    "load_form_key",
    "schema_state",
    "sync",
    "volume_record",
    "wait_for_database",
]


class Store:
    """All state that survives the process.

    Every method of its components raises ``Unavailable`` while the database is unavailable.  A
    cancelled method has written nothing, unless it was already committing.
    """

    def __init__(self, url: str, reactor: Any, metrics: Metrics = UNEXPOSED) -> None:
        """Does not connect yet.  Raises ``ConfigError`` for an unusable URL."""
        self._database = Database(url, reactor, metrics)
        self.carts = Carts(self._database)
        self.leases = Leases(self._database)
        self.progress = Progress(self._database)
        self.removals = Removals(self._database)
        self.space = Space(self._database)
        self.durability = Durability(self._database)
        self.dedup = Dedup(self._database)
        self.statuses = Statuses(self._database)
        self.totals = Totals(self._database)

    @property
    def outage(self) -> str | None:
        """Why the database is unavailable, for administrators; None if it is available."""
        return self._database.outage

    async def close(self) -> None:
        """Wait for running queries, close all connections and end their threads."""
        await self._database.close()
