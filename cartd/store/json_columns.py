"""Fetch many rows as one, with a JSON array per column, to avoid one object per tar member.

SQLAlchemy's row object for a file costs twice as much as the database's own work for it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class JsonArray(FunctionElement[str]):
    """Aggregates a column into a JSON array in row order; null if there are no rows."""

    type = Text()
    inherit_cache = True


@compiles(JsonArray, "sqlite")
def _of_sqlite(array: JsonArray, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_group_array({compiler.process(array.clauses, **options)})"


@compiles(JsonArray, "postgresql")
def _of_postgresql(array: JsonArray, compiler: SQLCompiler, **options: Any) -> str:
    # Cast to text: the driver would decode a json value itself.
    return f"CAST(json_agg({compiler.process(array.clauses, **options)}) AS TEXT)"


def as_json_columns(rows: Select[Any]) -> Select[Any]:
    """Return a query for one row with a JSON array of each column of ``rows``, in their order."""
    columns: list[ColumnElement[Any]] = [JsonArray(column) for column in rows.subquery().c]
    return select(*columns)
