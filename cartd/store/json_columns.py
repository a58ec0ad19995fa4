"""Many rows as one, each column a JSON array: what a tar is made of, without an object a file.

SQLAlchemy's row of one file takes twice as long as the database's work for it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class JsonArray(FunctionElement[str]):
    """Aggregates a column in the order of its rows; null if there are none."""

    type = Text()
    inherit_cache = True


@compiles(JsonArray, "sqlite")
def _of_sqlite(array: JsonArray, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_group_array({compiler.process(array.clauses, **options)})"


@compiles(JsonArray, "postgresql")
def _of_postgresql(array: JsonArray, compiler: SQLCompiler, **options: Any) -> str:
    # A driver would decode a value of the type json by itself.
    return f"CAST(json_agg({compiler.process(array.clauses, **options)}) AS TEXT)"


def as_json_columns(rows: Select[Any]) -> Select[Any]:
    """One row with a JSON array of each column of ``rows``, in their order."""
    columns: list[ColumnElement[Any]] = [JsonArray(column) for column in rows.subquery().c]
    return select(*columns)
