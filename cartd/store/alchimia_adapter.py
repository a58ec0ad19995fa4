"""Adapts alchimia to SQLAlchemy 2; the only module that imports it or uses its internals.

alchimia's last release derives a class that cartd does not use from ``DefaultEngineStrategy``,
which SQLAlchemy 1.4 removed.  With an empty class of that name the import succeeds; the rest of
alchimia needs only what SQLAlchemy still has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.engine import strategies
from sqlalchemy.exc import DisconnectionError
from twisted.internet.defer import Deferred

if not hasattr(strategies, "DefaultEngineStrategy"):
    strategies.DefaultEngineStrategy = type(  # type: ignore[attr-defined]
        "DefaultEngineStrategy", (), {}
    )

from alchimia import wrap_engine

__all__ = ["all_rows", "driver_connection", "roll_back", "wrap_engine"]


def all_rows(
    alchimia: Any, statement: Executable, parameters: Any, *, end: bool = False
) -> Deferred[Sequence[Any]]:
    """Return what ``execute`` and ``fetchall`` return, in one trip to the connection's thread.

    Two trips would need one more iteration of the reactor per query, which is slow under load.
    alchimia has no public name for this, and is no longer developed.  ``end`` also ends the
    transaction that the query has begun implicitly.
    """
    connection = alchimia._connection

    def rows() -> Sequence[Any]:
        found: Sequence[Any] = connection.execute(statement, parameters).fetchall()
        if end:
            connection.commit()
        return found

    return alchimia._defer_to_cxn(rows)  # type: ignore[no-any-return]


def roll_back(alchimia: Any) -> Deferred[None]:
    """Roll back any open transaction, after the calls queued before.

    Fails if the connection was lost.  alchimia's own rollback would warn if the transaction was
    committed already.
    """
    connection = alchimia._connection

    def end() -> None:
        connection.rollback()
        if connection.invalidated:
            raise DisconnectionError("connection lost")

    return alchimia._defer_to_cxn(end)  # type: ignore[no-any-return]


def driver_connection(alchimia: Any) -> Any:
    """Return the driver's connection of an open, idle alchimia connection."""
    return alchimia._connection.connection.driver_connection
