"""alchimia on SQLAlchemy 2: the only module that imports it, and that knows how it is made.

alchimia's last release derives a class that nothing here uses from ``DefaultEngineStrategy``, a
name that SQLAlchemy 1.4 removed.  With an empty class of that name in its place the import passes,
and the rest of alchimia needs only what SQLAlchemy still has.
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
    """What ``execute`` and then ``fetchall`` give, by one trip to the connection's thread.

    By two, the reactor would come round once more within each query, which takes long when it is
    busy.  alchimia has no name for this, and will not change any more.  ``end`` also ends the
    transaction that the query has begun by itself.
    """
    connection = alchimia._connection

    def rows() -> Sequence[Any]:
        found: Sequence[Any] = connection.execute(statement, parameters).fetchall()
        if end:
            connection.commit()
        return found

    return alchimia._defer_to_cxn(rows)  # type: ignore[no-any-return]


def roll_back(alchimia: Any) -> Deferred[None]:
    """End whatever transaction is open, after what was asked before.

    Fails if the connection was lost meanwhile.  alchimia's transactions would warn of one that was
    committed already.
    """
    connection = alchimia._connection

    def end() -> None:
        connection.rollback()
        if connection.invalidated:
            raise DisconnectionError("it was lost")

    return alchimia._defer_to_cxn(end)  # type: ignore[no-any-return]


def driver_connection(alchimia: Any) -> Any:
    """The driver's own connection, of one that is open and not in use."""
    return alchimia._connection.connection.driver_connection
