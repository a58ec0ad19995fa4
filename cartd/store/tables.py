"""The tables as the queries use them; ``migrations`` creates them.

``cart`` and ``file`` keep the names and columns of Pacifica Cartd, so that a site's own SQL keeps
working.  Dates are UTC without a zone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

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
    Column("evicting", String(32), comment="Token of its running eviction; null if none"),
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
Index("cart_living", cart.c.status, sqlite_where=_NOT_DELETED, postgresql_where=_NOT_DELETED)
# Without authentication these two stay empty.  With the first, a look-up of a user's cart reads no
# others; with the second, a post finds the unfinished carts of its user.
_OWNED = text("deleted_date IS NULL AND owner IS NOT NULL")
_OF_OWNER = (cart.c.owner, cart.c.cart_uid, cart.c.id)
Index("cart_owner_uid_id", *_OF_OWNER, sqlite_where=_OWNED, postgresql_where=_OWNED)
_UNDER_WAY = (cart.c.owner, cart.c.status)
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
_LINKED = text("linked_to IS NOT NULL")
Index("file_linked_to", file.c.linked_to, sqlite_where=_LINKED, postgresql_where=_LINKED)

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
