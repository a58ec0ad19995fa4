"""The schema: the tables as the queries use them, and their rows as values of the model.

``migrations`` creates the tables, and ``schema`` runs it.  ``cart`` and ``file`` keep the names and
columns of Pacifica Cartd, so that a site's own SQL keeps working.  Dates are UTC without a zone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.json import Decoder
from msgspec.structs import replace
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    bindparam,
    case,
    false,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from cartd.model import Cart, CartFile, CartFormat, CartStatus, FileStatus, TarFacts
from cartd.tar.members import Members

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

metadata = MetaData()

ID = BigInteger().with_variant(Integer, "sqlite")
"""Ids are 64 bits wide, for years at thousands of rows per second.  SQLite's INTEGER has 64 bits
anyway, and only a column of that type is a primary key with generated ids."""

cartsystem = Table(
    "cartsystem",
    metadata,
    Column("part", String(255), primary_key=True, comment="major, minor or volume"),
    Column(
        "value",
        Integer,
        nullable=False,
        comment="Part of the schema's version; or the identity of the volume",
    ),
    comment="The schema's version, where Pacifica's programs read it",
)

secret = Table(
    "secret",
    metadata,
    Column("name", String(255), primary_key=True, comment="What it is for"),
    Column("value", Text, nullable=False, comment="Random bytes, in hex"),
    comment="Keys that all processes share",
)

cart = Table(
    "cart",
    metadata,
    Column("id", ID, primary_key=True, comment="Also the name of its directory on the volume"),
    Column("cart_uid", String(255), nullable=False, comment="The uid that its client chose"),
    Column(
        "bundle",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="Whether its tar is written to the volume",
    ),
    Column("creation_date", DateTime, nullable=False, comment="When it was posted"),
    Column("updated_date", DateTime, nullable=False, comment="When its status last changed"),
    Column("deleted_date", DateTime, comment="When it was deleted; null if it was not"),
    Column(
        "status",
        Text,
        nullable=False,
        comment="waiting, staging, bundling, ready, error or deleted",
    ),
    Column("error", Text, nullable=False, comment="Why it is in error; empty otherwise"),
    Column("problem", Text, comment="The same for programs; null if unknown"),
    Column("used_date", DateTime, nullable=False, comment="When it was last posted or downloaded"),
    Column(
        "fingerprint",
        String(64),
        comment="SHA-256 of its manifest; null if it was posted to Pacifica Cartd",
    ),
    Column(
        "files_total",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="Number of its files",
    ),
    Column(
        "files_staged",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="Number of its files with the status staged",
    ),
    Column("bytes_total", BigInteger, comment="Sum of its files' sizes; null until all are known"),
    Column(
        "bytes_staged",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="Sum of the sizes of its staged files",
    ),
    Column(
        "volume_bytes",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="Space used on the volume, or reserved while it is staged",
    ),
    Column(
        "bytes_linked",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="Part of bytes_staged and volume_bytes that other files own",
    ),
    Column(
        "invalidations",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="How often its staged files were invalidated; older links to them are not recorded",
    ),
    Column(
        "waits_since", DateTime, comment="Since when it waits for the archive; null if it does not"
    ),
    Column("waits_for", Text, comment="Why it waits, for its client; null if it does not"),
    Column("tape_since", DateTime, comment="Since when files of it are on tape; null if none is"),
    Column("tape_files", Integer, comment="Number of its files on tape when last recorded"),
    Column("verified_date", DateTime, comment="When its bytes were last compared with its hashes"),
    Column("removed_date", DateTime, comment="When a deleted cart was removed from the volume"),
    Column("owner", String(255), comment="User who posted it; null without authentication"),
    Column("tar_layout", Integer, comment="Version of its tar's layout; null until determined"),
    Column(
        "tar_digest", String(64), comment="SHA-256 of the input that determines its tar's bytes"
    ),
    Column("tar_lengths", Text, comment="Lengths of its tar for all top folder names, as JSON"),
    Column("tar_date", DateTime, comment="Since when its tar has had these bytes"),
    Column(
        "format",
        String(16),
        nullable=False,
        server_default=text("'tar'"),
        comment="What clients get that request no format, and what bundle writes: tar or bag",
    ),
    Column("bag", Text, comment="Facts of its bag, as JSON; null until determined"),
    Column(
        "max_failed",
        Integer,
        comment="How many files may fail in a ready cart; null if the cart fails with the first",
    ),
    Column("evicting", String(32), comment="Token of its running eviction; null if none"),
    Column("name", Text, comment="Its name for people, from its manifest; null if it has none"),
    Column(
        "labels",
        Text,
        nullable=False,
        server_default=text("'[]'"),
        comment="Its labels, as a JSON array of texts",
    ),
    Column("started_date", DateTime, comment="When its staging last began; null before"),
    Column(
        "files_failed",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="Number of its files with the status error",
    ),
    Column(
        "files_linked",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="How many of its files were linked instead of fetched when they were staged",
    ),
    Column(
        "size_linked",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="Sum of the sizes of those files",
    ),
    Column(
        "pace",
        Text,
        comment="Rate and estimated end of its staging, as JSON; null while it is not measured",
    ),
    Column(
        "version",
        Integer,
        nullable=False,
        server_default=text("0"),
        onupdate=text("version + 1"),
        comment="How often this row has changed, except its lease",
    ),
    Column("lease_holder", Text, comment="Process that stages it; null if none does"),
    Column("lease_until", Double, comment="Unix time at which the lease expires"),
    comment="One posted manifest under one uid",
    # Ids are not reused: a directory on the volume is named by the id of its cart.
    sqlite_autoincrement=True,
)
# The newest cart of a uid is the last entry of its range in this index.
Index("cart_uid_id", cart.c.cart_uid, cart.c.id)
# Deleted carts are kept as history; queries for undeleted carts must not read them.
_NOT_DELETED = text("deleted_date IS NULL")
# With the id, so that lists of carts are read in their order.
Index(
    "cart_living",
    cart.c.status,
    cart.c.id,
    sqlite_where=_NOT_DELETED,
    postgresql_where=_NOT_DELETED,
)
# A list of the partial carts, few among the ready ones, reads no others.
_PARTIAL = text("deleted_date IS NULL AND status = 'ready' AND files_failed > 0")
Index(
    "cart_partial",
    cart.c.status,
    cart.c.id,
    sqlite_where=_PARTIAL,
    postgresql_where=_PARTIAL,
)
# Without authentication these two stay empty.  With the first, a look-up of a user's cart reads no
# others; with the second, a post finds the unfinished carts of its user.
_OWNED = text("deleted_date IS NULL AND owner IS NOT NULL")
_OF_OWNER = (cart.c.owner, cart.c.cart_uid, cart.c.id)
Index("cart_owner_uid_id", *_OF_OWNER, sqlite_where=_OWNED, postgresql_where=_OWNED)
_UNDER_WAY = (cart.c.owner, cart.c.status, cart.c.id)
Index("cart_owner_status", *_UNDER_WAY, sqlite_where=_OWNED, postgresql_where=_OWNED)

_PENDING_REMOVAL = text("deleted_date IS NOT NULL AND removed_date IS NULL")
Index(
    "cart_pending_removal",
    cart.c.id,
    sqlite_where=_PENDING_REMOVAL,
    postgresql_where=_PENDING_REMOVAL,
)
# Polled every few seconds: which carts are leased or being evicted, few among all.
_LEASED = text("lease_holder IS NOT NULL")
Index("cart_leased", cart.c.lease_holder, sqlite_where=_LEASED, postgresql_where=_LEASED)
_EVICTING = text("evicting IS NOT NULL")
Index("cart_evicting", cart.c.id, sqlite_where=_EVICTING, postgresql_where=_EVICTING)
# Finds the carts removed long ago without reading all removed ones.
_REMOVED = text("removed_date IS NOT NULL")
Index("cart_removed", cart.c.removed_date, sqlite_where=_REMOVED, postgresql_where=_REMOVED)

file = Table(
    "file",
    metadata,
    Column("id", ID, primary_key=True),
    Column("cart_id", ID, ForeignKey("cart.id"), nullable=False, comment="Its cart"),
    Column("file_name", Text, nullable=False, comment="Its id in the archive"),
    Column("bundle_path", Text, nullable=False, comment="Its path within the cart"),
    Column("hash_type", String(255), nullable=False, comment="Hash algorithm, by hashlib's name"),
    Column("hash_value", Text, nullable=False, comment="Lower-case hex; empty while unknown"),
    Column("status", Text, nullable=False, comment="waiting, staging, staged, error or deleted"),
    Column("error", Text, nullable=False, comment="Why it is in error; empty otherwise"),
    Column("problem", Text, comment="The same for programs; null if unknown"),
    Column("also_hash_type", String(255), comment="Algorithm of a second hash; null without one"),
    Column("also_hash_value", Text, comment="That hash, as lower-case hex"),
    Column("position", Integer, nullable=False, comment="Its position in the manifest, from 0"),
    Column("size", BigInteger, comment="Bytes, according to the archive; null until known"),
    Column("mtime", BigInteger, comment="Unix time of its last change, according to the archive"),
    Column(
        "linked_to",
        ID,
        comment="File whose bytes it shares by a hard link; null if it owns its bytes",
    ),
    comment="One entry of a cart's manifest",
)
Index("file_cart_id_position", file.c.cart_id, file.c.position, unique=True)
# Files on the volume, by id in the archive.  Rows are in it from staging until their cart is
# removed: posting costs nothing more, and history does not slow down the search.
_STAGED = text("status = 'staged'")
Index("file_staged", file.c.file_name, sqlite_where=_STAGED, postgresql_where=_STAGED)
_FAILED = text("status = 'error'")
Index(
    "file_failed", file.c.cart_id, file.c.position, sqlite_where=_FAILED, postgresql_where=_FAILED
)
_LINKED = text("linked_to IS NOT NULL")
Index("file_linked_to", file.c.linked_to, sqlite_where=_LINKED, postgresql_where=_LINKED)

cart_label = Table(
    "cart_label",
    metadata,
    Column("label", Text, primary_key=True, comment="One of its labels"),
    Column("cart_id", ID, ForeignKey("cart.id"), primary_key=True, comment="The cart"),
    Column("owner", String(255), comment="Its owner; null without authentication"),
    comment="The labels of carts that are not deleted, for lists of carts with a label",
    sqlite_with_rowid=False,
)
# A user's list reads no labels of others.
Index(
    "cart_label_owner",
    cart_label.c.owner,
    cart_label.c.label,
    cart_label.c.cart_id,
    sqlite_where=text("owner IS NOT NULL"),
    postgresql_where=text("owner IS NOT NULL"),
)
Index("cart_label_cart_id", cart_label.c.cart_id)

page_cache = Table(
    "page_cache",
    metadata,
    Column("holder", Text, primary_key=True, comment="The process"),
    Column(
        "cache", Text, nullable=False, comment="Boot and mount whose page cache has what it wrote"
    ),
    comment="Processes without a running or failed sync of the volume",
)

dirty_files = Table(
    "dirty_files",
    metadata,
    Column("id", ID, primary_key=True),
    Column("cart_id", ID, ForeignKey("cart.id"), nullable=False, comment="Cart of the files"),
    Column("positions", Text, nullable=False, comment="Their positions, as a JSON array"),
    Column("holder", Text, nullable=False, comment="Process that staged them"),
    Column(
        "lease_until",
        Double,
        nullable=False,
        comment="Unix time from which another process may verify them",
    ),
    comment="Staged files that may not have reached the disk: a power failure can damage them",
    # Ids are not reused: a row deleted during a sync must not return under the same id.
    sqlite_autoincrement=True,
)


UNFINISHED = (CartStatus.WAITING.value, CartStatus.STAGING.value, CartStatus.BUNDLING.value)
FINISHED = (CartStatus.READY.value, CartStatus.ERROR.value)

_CART_STATUSES = {status.value: status for status in CartStatus}
_CART_FORMATS = {format_.value: format_ for format_ in CartFormat}
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
        "problem": cart.c.problem,
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
        "format": cart.c.format,
        "max_failed": cart.c.max_failed,
        "files_failed": cart.c.files_failed,
        "bag": cart.c.bag,
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
        "problem": file.c.problem,
        "size": file.c.size,
        "mtime": file.c.mtime,
        "id": file.c.id,
        "also_hash_type": file.c.also_hash_type,
        "also_hash_sum": file.c.also_hash_value,
    },
)
_CART_STATUS, _CART_FORMAT, *_CART_TIMES = map(
    _field_names(Cart).index,
    ("status", "format", "created", "updated", "used", "waits_since", "tape_since"),
)
_TAR_LAYOUT, _TAR_TIME = map(_field_names(TarFacts).index, ("layout", "since"))
_FILE_STATUS = _field_names(CartFile).index("status")
CARTS: Select[Any] = select(*_OF_CART, *_OF_TAR)
FILES: Select[Any] = select(*_OF_FILE)
MEMBERS: Select[Any] = select(
    file.c.bundle_path, file.c.size, file.c.mtime, file.c.hash_type, file.c.hash_value
)
"""The content of a tar."""
_HASH_TYPES: BindParameter[Any] = bindparam("hash_types", expanding=True)
BAG_MEMBERS: Select[Any] = MEMBERS.add_columns(
    case(
        (file.c.hash_type.in_(_HASH_TYPES), file.c.hash_value),
        (file.c.also_hash_type.in_(_HASH_TYPES), file.c.also_hash_value),
    ).label("sum")
)
"""The content of a bag, with the hash of each file by one algorithm, or null."""
_TEXTS = Decoder(list[str])
_TEXTS_OR_NONE = Decoder(list[str | None])
_NUMBERS = Decoder(list[int])


# A naive UTC date plus seconds is correct for any time; fromtimestamp() on Windows is not.
_EPOCH = datetime(1970, 1, 1)


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
    values[_CART_FORMAT] = _CART_FORMATS[values[_CART_FORMAT]]
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


def bag_members_of(row: Any) -> Members:
    """Return the members of a row of ``BAG_MEMBERS``, as ``members_of`` does."""
    return replace(members_of(row), sums=_TEXTS_OR_NONE.decode(row.sum or "[]"))


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
    """Return a query for one row with a JSON array of each column of ``rows``, under its name.

    One row for many, such as the members of a tar, avoids one object per row: SQLAlchemy's row
    object for a file costs twice as much as the database's own work for it.
    """
    columns: list[ColumnElement[Any]] = [
        JsonArray(column).label(name) for name, column in rows.subquery().c.items()
    ]
    return select(*columns)


BATCH = 2000
"""Rows per statement: few round trips, and none that blocks the reactor while it is prepared."""


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of at most ``size``."""
    while batch := list(islice(items, size)):
        yield batch
