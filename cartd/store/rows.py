"""Conversion between rows of the tables and values of the model; rows in batches.

The members of a tar are fetched many rows as one, with a JSON array per column, which avoids one
object per member: SQLAlchemy's row object for a file costs twice as much as the database's own
work for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.json import Decoder
from sqlalchemy import ColumnElement, Select, Text, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from cartd.model import Cart, CartFile, CartStatus, FileStatus, TarFacts
from cartd.store.tables import cart, file
from cartd.tar.index import Members

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

BATCH = 2000
"""Rows per statement: few round trips, and none that blocks the reactor while it is prepared."""

# A naive UTC date plus seconds is correct for any time; fromtimestamp() on Windows is not.
_EPOCH = datetime(1970, 1, 1)

UNFINISHED = (CartStatus.WAITING.value, CartStatus.STAGING.value, CartStatus.BUNDLING.value)
FINISHED = (CartStatus.READY.value, CartStatus.ERROR.value)

_CART_STATUSES = {status.value: status for status in CartStatus}
_FILE_STATUSES = {status.value: status for status in FileStatus}


def in_field_order(
    model: type[DataclassInstance], columns: Mapping[str, ColumnElement[Any]]
) -> list[ColumnElement[Any]]:
    """Return the columns, given by the names of the fields of ``model``, in the order of these.

    The last fields may be missing.  A row of a query for these columns is a list of arguments for
    the class; reading every column of a row by its name takes three times as long.
    """
    return [columns[name] for name in _field_names(model)[: len(columns)]]


def _field_names(model: type[DataclassInstance]) -> list[str]:
    return [field.name for field in fields(model)]


_OF_CART = in_field_order(
    Cart,
    {
        "id": cart.c.id,
        "uid": cart.c.cart_uid,
        "status": cart.c.status,
        "created": cart.c.creation_date,
        "updated": cart.c.updated_date,
        "used": cart.c.used_date,
        "error": cart.c.error,
        "bundle": cart.c.bundle,
        "fingerprint": cart.c.fingerprint,
        "files_total": cart.c.files_total,
        "files_staged": cart.c.files_staged,
        "bytes_total": cart.c.bytes_total,
        "bytes_staged": cart.c.bytes_staged,
        "volume_bytes": cart.c.volume_bytes,
        "bytes_linked": cart.c.bytes_linked,
        "owner": cart.c.owner,
        "evicting": cart.c.evicting,
        "waits_for": cart.c.waits_for,
        "tape_files": cart.c.tape_files,
        "waits_since": cart.c.waits_since,
        "tape_since": cart.c.tape_since,
    },
)
_OF_TAR = in_field_order(
    TarFacts,
    {
        "layout": cart.c.tar_layout,
        "digest": cart.c.tar_digest,
        "lengths": cart.c.tar_lengths,
        "since": cart.c.tar_date,
    },
)
_OF_FILE = in_field_order(
    CartFile,
    {
        "position": file.c.position,
        "archive_id": file.c.file_name,
        "path": file.c.bundle_path,
        "hash_type": file.c.hash_type,
        "hash_sum": file.c.hash_value,
        "status": file.c.status,
        "error": file.c.error,
        "size": file.c.size,
        "mtime": file.c.mtime,
        "id": file.c.id,
    },
)
_CART_STATUS, *_CART_TIMES = map(
    _field_names(Cart).index, ("status", "created", "updated", "used", "waits_since", "tape_since")
)
_TAR_LAYOUT, _TAR_TIME = map(_field_names(TarFacts).index, ("layout", "since"))
_FILE_STATUS = _field_names(CartFile).index("status")
CARTS: Select[Any] = select(*_OF_CART, *_OF_TAR)
FILES: Select[Any] = select(*_OF_FILE)
MEMBERS: Select[Any] = select(
    file.c.bundle_path, file.c.size, file.c.mtime, file.c.hash_type, file.c.hash_value
)
"""The content of a tar."""
_TEXTS = Decoder(list[str])
_NUMBERS = Decoder(list[int])


def date_of(time: float) -> datetime:
    """Return a Unix time as the tables store it."""
    return _EPOCH + timedelta(seconds=time)


def time_of(date: datetime) -> float:
    """Return the Unix time of a date in the tables."""
    return (date - _EPOCH).total_seconds()


def cart_of(row: Any) -> Cart:
    """Return the cart of a row of ``CARTS``."""
    values, tar = [*row[: len(_OF_CART)]], [*row[len(_OF_CART) :]]
    for field in _CART_TIMES:
        if values[field] is not None:
            values[field] = time_of(values[field])
    values[_CART_STATUS] = _CART_STATUSES[values[_CART_STATUS]]
    if tar[_TAR_LAYOUT] is not None:
        tar[_TAR_TIME] = time_of(tar[_TAR_TIME])
        values.append(TarFacts(*tar))
    return Cart(*values)


def members_of(row: Any) -> Members:
    """Return the members of a row of ``MEMBERS``, whose columns are JSON arrays or null."""
    return Members(
        paths=_TEXTS.decode(row.bundle_path or "[]"),
        sizes=_NUMBERS.decode(row.size or "[]"),
        mtimes=_NUMBERS.decode(row.mtime or "[]"),
        hash_types=_TEXTS.decode(row.hash_type or "[]"),
        hash_sums=_TEXTS.decode(row.hash_value or "[]"),
    )


def file_of(row: Any) -> CartFile:
    """Return the file of a row of ``FILES``."""
    values = [*row]
    values[_FILE_STATUS] = _FILE_STATUSES[values[_FILE_STATUS]]
    return CartFile(*values)


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
    """Return a query for one row with a JSON array of each column of ``rows``, under its name."""
    columns: list[ColumnElement[Any]] = [
        JsonArray(column).label(name) for name, column in rows.subquery().c.items()
    ]
    return select(*columns)


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of at most ``size``."""
    while batch := list(islice(items, size)):
        yield batch
