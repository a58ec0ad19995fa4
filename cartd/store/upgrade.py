"""Upgrade a schema by Alembic's migrations; blocking."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import SetColumnComment, SetTableComment

from cartd.store.schema_version import UpgradeError
from cartd.store.tables import metadata


def upgrade(connection: Connection, version: str | None) -> None:
    """Upgrade a database of ``version`` (None: an empty one) in the open transaction.

    Raises :class:`UpgradeError`; then the transaction must be rolled back.
    """
    config = Config()
    config.set_main_option("script_location", "cartd.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        if version is not None:
            command.stamp(config, version)
        command.upgrade(config, "head")
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
