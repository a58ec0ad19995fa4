"""Check and upgrade the schema of a database; blocking, for the start and the commands.

Strategy: one transaction upgrades a database from any version to the current one, or changes
nothing.  A database of Pacifica Cartd has its version in the table ``cartsystem``; after the
upgrade Alembic records it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from cartd.errors import ConfigError, DatabaseUnavailable
from cartd.store.database_errors import translate_error, with_file_reason
from cartd.store.engine import parse, schema_engine
from cartd.store.schema_version import SchemaCondition, SchemaState, state_of
from cartd.store.tables import cartsystem

# Unlikely to be used by another program: "cartd" in ASCII.
_UPGRADE_LOCK = 0x6361727464


def schema_state(url: str) -> SchemaState:
    """Return the state of the database's schema; raises ``Unavailable``."""
    if _is_missing_file(url):
        return state_of(tables=frozenset(), version=None)
    with schema_transaction(url) as connection:
        return _state(connection)


def sync(url: str) -> SchemaState:
    """Create the tables, or upgrade them; a current or newer minor version is not changed.

    Raises ``ConfigError`` for a database that is not cartd's or has an unknown version,
    ``UpgradeError`` with nothing changed, ``Unavailable``.
    """
    with schema_transaction(url) as connection:
        lock_schema(connection)
        state = _state(connection)
        if state.condition in (SchemaCondition.FOREIGN, SchemaCondition.NEWER):
            raise ConfigError(state.explanation)
        if state.condition in (SchemaCondition.MISSING, SchemaCondition.OLDER):
            # Imported here: Alembic is slow to load and seldom used.
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
    """Return once the database answers; raise ``DatabaseUnavailable`` after ``attempts``.

    Between two attempts ``notify`` is called with the reason, and ``sleep(wait)``.  Permanent
    failures, such as a wrong password, are raised at once.
    """
    for _ in range(attempts - 1):
        try:
            return _ping(url)
        except DatabaseUnavailable as error:
            if not error.transient:
                raise
            notify(f"{error.admin_message}; retrying in {wait:g} s")
            sleep(wait)
    return _ping(url)


def _ping(url: str) -> None:
    if not _is_missing_file(url):
        with schema_transaction(url) as connection:
            connection.execute(select(1))


@contextmanager
def schema_transaction(url: str) -> Iterator[Connection]:
    """Open a connection in a transaction, committed at the end.  Raises ``Unavailable``."""
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
    """Whether it is a SQLite file that does not exist; connecting would create it."""
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
    """Serialize upgrades and starts.  On SQLite the transaction holds the only lock already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
