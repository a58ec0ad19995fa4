"""The version of a database's schema, and its upgrade: blocking, for the start and the commands.

Strategy: one transaction takes a database from whatever version to ours, or leaves it as it was.
A database of Pacifica Cartd tells its version in the table ``cartsystem``; from the upgrade on
Alembic keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from cartd.errors import ConfigError, DatabaseUnavailable
from cartd.store.database_errors import translate_error, with_file_reason
from cartd.store.engines import parse, schema_engine
from cartd.store.schema_version import SchemaCondition, SchemaState, state_of
from cartd.store.tables import cartsystem

# Any number that no other program is likely to choose; it spells "cartd".
_UPGRADE_LOCK = 0x6361727464


def schema_state(url: str) -> SchemaState:
    """Which version the database has; raises ``Unavailable`` if it cannot be asked."""
    if _is_missing_file(url):
        return state_of(tables=frozenset(), version=None)
    with schema_transaction(url) as connection:
        return _state(connection)


def sync(url: str) -> SchemaState:
    """Create the tables, or upgrade them to our version; what is current or newer stays.

    Raises ``ConfigError`` for a database that is not cartd's or of a version from the future,
    ``UpgradeError`` with nothing changed, ``Unavailable``.
    """
    with schema_transaction(url) as connection:
        lock_schema(connection)
        state = _state(connection)
        if state.condition in (SchemaCondition.FOREIGN, SchemaCondition.NEWER):
            raise ConfigError(state.explanation)
        if state.condition in (SchemaCondition.MISSING, SchemaCondition.OLDER):
            # Here and not above: Alembic takes longer to load than all else, and is seldom used.
            from cartd.store.upgrade import upgrade

            upgrade(connection, state.version)
        return _state(connection)


def wait_for_database(
    url: str,
    attempts: int,
    wait: float,
    sleep: Callable[[float], object],
    notify: Callable[[str], object] = lambda _: None,
) -> None:
    """Return once the database answers; after ``attempts`` in vain raise the last
    ``DatabaseUnavailable``.

    Between two attempts ``notify`` is called with why it waits, and ``sleep(wait)``.  What waiting
    does not mend, as a wrong password, is raised at once.
    """
    for _ in range(attempts - 1):
        try:
            return _ping(url)
        except DatabaseUnavailable as error:
            if not error.transient:
                raise
            notify(f"{error.admin_message}; it is tried again in {wait:g} s")
            sleep(wait)
    return _ping(url)


def _ping(url: str) -> None:
    if not _is_missing_file(url):
        with schema_transaction(url) as connection:
            connection.execute(select(1))


@contextmanager
def schema_transaction(url: str) -> Iterator[Connection]:
    """A connection in a transaction that is committed at the end.  Raises ``Unavailable``."""
    engine = schema_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raised = translate_error(error)
        if raised is None:
            raise
        if isinstance(raised, DatabaseUnavailable):
            raised = with_file_reason(raised, engine.url)
        raise raised from error
    finally:
        engine.dispose()


def _is_missing_file(url: str) -> bool:
    """Whether it is a SQLite file that nobody has made: to look at it would make it."""
    parsed = parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return False
    path = Path(parsed.database)
    return path.parent.is_dir() and not path.exists()


def _state(connection: Connection) -> SchemaState:
    tables = frozenset(inspect(connection).get_table_names())
    return state_of(tables=tables, version=_version(connection, tables))


def _version(connection: Connection, tables: frozenset[str]) -> str | None:
    if "alembic_version" in tables:
        versions = connection.scalars(text("SELECT version_num FROM alembic_version")).all()
        if versions:
            return " and ".join(sorted(versions))
    if "cartsystem" in tables:
        parts = dict(connection.execute(select(cartsystem.c.part, cartsystem.c.value)).all())
        if {"major", "minor"} <= parts.keys():
            return f"{parts['major']}.{parts['minor']}"
    return None


def lock_schema(connection: Connection) -> None:
    """No two upgrades, or starts, at once.  SQLite's transaction holds its one lock already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
