"""Conversion between rows of the tables and values of the model; rows in batches.

The members of a tar are fetched many rows as one, with a JSON array per column, which avoids one
object per member: SQLAlchemy's row object for a file costs twice as much as the database's own
work for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from msgspec.json import Decoder
from sqlalchemy import ColumnElement, Select, Text, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from cartd.model import Cart, CartFile, CartStatus, FileStatus, TarFacts
from cartd.store.tables import cart, file
from cartd.tar.index import Members

T = TypeVar("T")

BATCH = 2000
"""Rows per statement: few round trips, and none that blocks the reactor while it is prepared."""
# A naive UTC date plus seconds is correct for any time; fromtimestamp() on Windows is not.
_EPOCH = datetime(1970, 1, 1)

UNFINISHED = (CartStatus.WAITING.value, CartStatus.STAGING.value, CartStatus.BUNDLING.value)
FINISHED = (CartStatus.READY.value, CartStatus.ERROR.value)

# The columns in the order in which the functions below unpack them.
CARTS: Select[Any] = select(
    cart.c.id,
    cart.c.cart_uid,
    cart.c.status,
    cart.c.creation_date,
    cart.c.updated_date,
    cart.c.used_date,
    cart.c.error,
    cart.c.bundle,
    cart.c.fingerprint,
    cart.c.files_total,
    cart.c.files_staged,
    cart.c.bytes_total,
    cart.c.bytes_staged,
    cart.c.volume_bytes,
    cart.c.bytes_linked,
    cart.c.owner,
    cart.c.evicting,
    cart.c.waits_for,
    cart.c.tape_files,
    cart.c.waits_since,
    cart.c.tape_since,
    cart.c.tar_layout,
    cart.c.tar_digest,
    cart.c.tar_lengths,
    cart.c.tar_date,
)
FILES: Select[Any] = select(
    file.c.position,
    file.c.file_name,
    file.c.bundle_path,
    file.c.hash_type,
    file.c.hash_value,
    file.c.status,
    file.c.error,
    file.c.size,
    file.c.mtime,
    file.c.id,
)
# The content of a tar, in the order of the fields of Members.
MEMBERS: Select[Any] = select(
    file.c.bundle_path, file.c.size, file.c.mtime, file.c.hash_type, file.c.hash_value
)
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
    id_, uid, status, created, updated, used, *rest, waits_since, tape_since = row[:-4]
    layout, digest, lengths, date = row[-4:]
    last: Sequence[Any] = (
        None if waits_since is None else time_of(waits_since),
        None if tape_since is None else time_of(tape_since),
        None if layout is None else TarFacts(layout, digest, lengths, time_of(date)),
    )
    return Cart(
        id_,
        uid,
        CartStatus(status),
        time_of(created),
        time_of(updated),
        time_of(used),
        *rest,
        *last,
    )


def members_of(row: Any) -> Members:
    """Return the members of a row of ``MEMBERS``, whose columns are JSON arrays or null."""
    paths, sizes, mtimes, hash_types, hash_sums = (column or "[]" for column in row)
    return Members(
        _TEXTS.decode(paths),
        _NUMBERS.decode(sizes),
        _NUMBERS.decode(mtimes),
        _TEXTS.decode(hash_types),
        _TEXTS.decode(hash_sums),
    )


def file_of(row: Any) -> CartFile:
    """Return the file of a row of ``FILES``."""
    position, archive_id, path, hash_type, hash_sum, status, error, *rest = row
    return CartFile(
        position, archive_id, path, hash_type, hash_sum, FileStatus(status), error, *rest
    )


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


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of at most ``size``."""
    while batch := list(islice(items, size)):
        yield batch
