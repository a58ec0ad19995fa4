"""The content of a database, for comparison."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from cartd.store.tables import metadata
from tests.support.pacifica_schema import begin


def as_it_is(url: str) -> dict[str, Any]:
    """Return all tables with their columns and rows."""
    with begin(url) as connection:
        inspector = inspect(connection)
        return {
            name: (
                [column["name"] for column in inspector.get_columns(name)],
                [index["name"] for index in inspector.get_indexes(name)],
                sorted(map(repr, connection.execute(text(f'SELECT * FROM "{name}"')))),
            )
            for name in inspector.get_table_names()
        }


def differences(url: str) -> list[Any]:
    with begin(url) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_server_default": True, "compare_type": True}
        )
        return list(compare_metadata(context, metadata))
