"""Check and upgrade the schema of a database; ``tables`` defines it, ``migrations`` has the steps.

All functions block: they are for the start and the commands.

Strategy: one transaction upgrades a database from any version to the current one, or changes
nothing.  A database of Pacifica Cartd has its version in the table ``cartsystem``; after the
upgrade Alembic records it.

The record of the volume, which says on which volume the carts are, is read and written under the
same lock.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection, delete, exists, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import SetColumnComment, SetTableComment

from cartd.errors import CartdError, ConfigError, DatabaseUnavailable
from cartd.store.database import translate_error, with_file_reason
from cartd.store.engine import parse, schema_engine
from cartd.store.tables import cart, cartsystem, metadata, secret

CURRENT = (3, 0)
"""The schema of this release: (major, minor).  A minor step only adds what may be ignored."""
UPGRADABLE = frozenset({(0, 1), (1, 0), (2, 0)})
_OWN_TABLES = frozenset({"cart", "file", "cartsystem"})
_CURRENT_TEXT = "{}.{}".format(*CURRENT)
_MIGRATIONS = Path(__file__).with_name("migrations")


class SchemaCondition(StrEnum):
    """How a database's schema compares with the schema of this release."""

    MISSING = "missing"
    OLDER = "older"
    CURRENT = "current"
    NEWER_MINOR = "newer_minor"
    NEWER = "newer"
    FOREIGN = "foreign"


_EXPLANATIONS = {
    SchemaCondition.MISSING: "The database has no tables yet; cartd-cmd dbsync creates them",
    SchemaCondition.OLDER: (
        "The database's schema is version {found}, older than {ours}; cartd-cmd dbsync upgrades it"
    ),
    SchemaCondition.CURRENT: "The database's schema is current: version {ours}",
    SchemaCondition.NEWER_MINOR: (
        "The database's schema is version {found}, newer than {ours} but safe to use"
    ),
    SchemaCondition.NEWER: (
        "The database's schema is version {found}, which this release does not support;"
        " it uses {ours}: run the release that created it"
    ),
    SchemaCondition.FOREIGN: (
        "The database has tables named cart or file, but no version of cartd's schema:"
        " it belongs to another program"
    ),
}


class UpgradeError(CartdError):
    """The schema could not be upgraded; nothing was changed."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema of a database."""

    condition: SchemaCondition
    version: str | None
    """As recorded in the database; None if it is not recorded."""

    @property
    def safe(self) -> bool:
        """Whether this release may use it: same major version, and not an older minor one."""
        return self.condition in (SchemaCondition.CURRENT, SchemaCondition.NEWER_MINOR)

    @property
    def current(self) -> bool:
        """Whether it is exactly the schema of this release."""
        return self.condition is SchemaCondition.CURRENT

    @property
    def explanation(self) -> str:
        """One sentence for the administrator."""
        return _EXPLANATIONS[self.condition].format(found=self.version, ours=_CURRENT_TEXT)


def state_of(*, tables: Set[str], version: str | None) -> SchemaState:
    """Return the state of a database that has ``tables`` and the recorded ``version``."""
    return SchemaState(_condition(tables, version), version)


def _condition(tables: Set[str], version: str | None) -> SchemaCondition:
    if version is None:
        return SchemaCondition.FOREIGN if tables & _OWN_TABLES else SchemaCondition.MISSING
    match = re.fullmatch(r"(\d+)\.(\d+)", version, re.ASCII)
    found = (int(match[1]), int(match[2])) if match else None
    if found == CURRENT:
        return SchemaCondition.CURRENT
    if found in UPGRADABLE:
        return SchemaCondition.OLDER
    if found is not None and found[0] == CURRENT[0]:
        return SchemaCondition.NEWER_MINOR
    return SchemaCondition.NEWER


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
            _upgrade(connection, state.version)
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
        rows = connection.execute(select(cartsystem.c.part, cartsystem.c.value)).all()
        parts = {row.part: row.value for row in rows}
        if {"major", "minor"} <= parts.keys():
            return f"{parts['major']}.{parts['minor']}"
    return None


def lock_schema(connection: Connection) -> None:
    """Serialize upgrades and starts.  On SQLite the transaction holds the only lock already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))


def _upgrade(connection: Connection, version: str | None) -> None:
    """Upgrade a database of ``version`` (None: an empty one) in the open transaction.

    Raises :class:`UpgradeError`; then the transaction must be rolled back.
    """
    # Imported here: Alembic is slow to load and seldom used.
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    # As Alembic's commands stamp and upgrade, which would need an env.py for the connection.
    try:
        revisions = ScriptDirectory(_MIGRATIONS, version_locations=[_MIGRATIONS])
        context = MigrationContext.configure(connection)
        if version is not None:
            context.stamp(revisions, version)
        with Operations.context(context):
            for revision in reversed([*revisions.iterate_revisions("head", version or "base")]):
                revision.module.upgrade()
                context.stamp(revisions, revision.revision)
        _comment(connection)
    except (SQLAlchemyError, CommandError) as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise UpgradeError(f"The upgrade failed and changed nothing: {reason}") from error


def _comment(connection: Connection) -> None:
    """Store the comments of tables and columns in the database."""
    if not connection.dialect.supports_comments:
        return
    for table in metadata.sorted_tables:
        connection.execute(SetTableComment(table))
        for column in table.columns:
            if column.comment:
                connection.execute(SetColumnComment(column))


_VOLUME = "volume"
_NUMBER = select(cartsystem.c.value).where(cartsystem.c.part == _VOLUME)
_HAS_CARTS = select(exists().where(cart.c.deleted_date.is_(None), cart.c.files_staged > 0))


class VolumeRecord:
    """The database's record of the volume, locked against other processes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def number(self) -> int | None:
        """None until a number has been recorded."""
        return self._connection.scalar(_NUMBER)

    @property
    def has_carts(self) -> bool:
        """Whether an undeleted cart should have files on the volume."""
        return bool(self._connection.scalar(_HAS_CARTS))

    def write(self, number: int) -> None:
        """Record ``number``, of 31 bits."""
        self._connection.execute(delete(cartsystem).where(cartsystem.c.part == _VOLUME))
        self._connection.execute(insert(cartsystem).values(part=_VOLUME, value=number))


@contextmanager
def volume_record(url: str) -> Iterator[VolumeRecord]:
    """Read and write in one transaction; an exception rolls it back.

    Raises ``Unavailable``.
    """
    with schema_transaction(url) as connection:
        lock_schema(connection)
        yield VolumeRecord(connection)


_KEY_BYTES = 32
_FORM_KEY = "form"
_KEY = select(secret.c.value).where(secret.c.name == _FORM_KEY)


def load_form_key(url: str) -> bytes:
    """Return the key of the tokens of forms, which all processes share; the first one creates it.

    Raises ``Unavailable``.
    """
    with schema_transaction(url) as connection:
        lock_schema(connection)
        key: str | None = connection.scalar(_KEY)
        if key is None:
            key = secrets.token_hex(_KEY_BYTES)
            connection.execute(insert(secret).values(name=_FORM_KEY, value=key))
    return bytes.fromhex(key)
