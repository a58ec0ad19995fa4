"""The tables as the queries see them; ``migrations`` makes them.

``cart`` and ``file`` keep the names and columns of Pacifica Cartd, so that a site's own SQL goes on
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
"""Rows are numbered for years at thousands a second.  SQLite's integers have 64 bits as they are,
and only one that is called so is a primary key that it fills in."""

cartsystem = Table(
    "cartsystem",
    metadata,
    Column("part", String(255), primary_key=True, comment="major, minor or volume"),
    Column(
        "value",
        Integer,
        nullable=False,
        comment="Of the schema's version; or what the volume is known by",
    ),
    comment="The schema's version, where Pacifica's own programs look for it",
)

cart = Table(
    "cart",
    metadata,
    Column("id", ID, primary_key=True, comment="Also names its directory on the volume"),
    Column("cart_uid", String(255), nullable=False, comment="The name that its client gave it"),
    Column(
        "bundle",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="Whether its tar is written to the volume",
    ),
    Column("creation_date", DateTime, nullable=False, comment="When it was posted"),
    Column("updated_date", DateTime, nullable=False, comment="When its status last changed"),
    Column("deleted_date", DateTime, comment="When it was deleted; null while it lives"),
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
        comment="How many files it has",
    ),
    Column(
        "files_staged",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="How many of them have the status staged",
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
        comment="What it takes of the volume, or was promised of it while it is staged",
    ),
    Column(
        "bytes_linked",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="How much of bytes_staged and volume_bytes is counted with other files",
    ),
    Column(
        "invalidations",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="How often staged files of it were found lost; links to those are no links to it",
    ),
    Column("waits_since", DateTime, comment="Since when it waits for the archive; null if not"),
    Column("waits_for", Text, comment="What it waits for, for its client; null if it does not"),
    Column("tape_since", DateTime, comment="Since when files of it are on tape; null if none is"),
    Column("tape_files", Integer, comment="How many of its files were on tape when last recorded"),
    Column("verified_date", DateTime, comment="When its bytes were last compared with its hashes"),
    Column("removed_date", DateTime, comment="When a deleted cart had gone from the volume"),
    Column("owner", String(255), comment="Which user posted it; null if nobody was asked who"),
    Column("tar_layout", Integer, comment="The layout of its tar; null until it is laid out"),
    Column("tar_digest", String(64), comment="SHA-256 of what its tar's bytes follow from"),
    Column("tar_lengths", Text, comment="The lengths of its tar below all names, as JSON"),
    Column("tar_date", DateTime, comment="Since when its tar has had these bytes"),
    Column("evicting", String(32), comment="Token of its eviction under way; null if none is"),
    Column("lease_holder", Text, comment="Which process stages it; null if none does"),
    Column("lease_until", Double, comment="Unix time from which another may take it over"),
    comment="One posted manifest under one uid",
    # A directory on the volume has the id of its cart: no other cart may ever get it.
    sqlite_autoincrement=True,
)
# The newest cart of a uid is the last entry of a range of this index.
Index("cart_uid_id", cart.c.cart_uid, cart.c.id)
# Deleted carts stay as history; what looks over all living ones shall not read through them.
_NOT_DELETED = text("deleted_date IS NULL")
Index("cart_living", cart.c.status, sqlite_where=_NOT_DELETED, postgresql_where=_NOT_DELETED)
# Where nobody is asked who they are, these two stay empty.  By the first, a look-up of one user's
# cart need not read others'; by the second, a post finds what its user has under way.
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
# Every few seconds it is asked which carts are staged, or on their way out: few among all.
_LEASED = text("lease_holder IS NOT NULL")
Index("cart_leased", cart.c.lease_holder, sqlite_where=_LEASED, postgresql_where=_LEASED)
_EVICTING = text("evicting IS NOT NULL")
Index("cart_evicting", cart.c.id, sqlite_where=_EVICTING, postgresql_where=_EVICTING)
# By this, what has been gone for long is found without reading through all that has.
_REMOVED = text("removed_date IS NOT NULL")
Index("cart_removed", cart.c.removed_date, sqlite_where=_REMOVED, postgresql_where=_REMOVED)

file = Table(
    "file",
    metadata,
    Column("id", ID, primary_key=True),
    Column("cart_id", ID, ForeignKey("cart.id"), nullable=False, comment="Its cart"),
    Column("file_name", Text, nullable=False, comment="Its id in the archive"),
    Column("bundle_path", Text, nullable=False, comment="Its path within the cart"),
    Column("hash_type", String(255), nullable=False, comment="A name that hashlib knows"),
    Column("hash_value", Text, nullable=False, comment="Lower-case hex; empty while unknown"),
    Column("status", Text, nullable=False, comment="waiting, staging, staged, error or deleted"),
    Column("error", Text, nullable=False, comment="Why it is in error; empty otherwise"),
    Column("position", Integer, nullable=False, comment="Its place in the manifest, from 0"),
    Column("size", BigInteger, comment="Bytes, as the archive told; null until then"),
    Column("mtime", BigInteger, comment="Unix time of its last change, as the archive told"),
    Column(
        "linked_to",
        ID,
        comment="The file whose bytes it shares by a hard link; null if it owns its own",
    ),
    comment="One entry of a cart's manifest",
)
Index("file_cart_id_position", file.c.cart_id, file.c.position, unique=True)
# What is on the volume, by its id in the archive.  Rows enter it when they are staged and leave
# it with their cart: posting costs nothing more, and the past does not slow down the search.
_STAGED = text("status = 'staged'")
Index("file_staged", file.c.file_name, sqlite_where=_STAGED, postgresql_where=_STAGED)
_LINKED = text("linked_to IS NOT NULL")
Index("file_linked_to", file.c.linked_to, sqlite_where=_LINKED, postgresql_where=_LINKED)

page_cache = Table(
    "page_cache",
    metadata,
    Column("holder", Text, primary_key=True, comment="Which process"),
    Column("cache", Text, nullable=False, comment="Boot and mount whose memory has what it wrote"),
    comment="Processes of which no sync of the volume is under way, or has failed",
)

dirty_files = Table(
    "dirty_files",
    metadata,
    Column("id", ID, primary_key=True),
    Column("cart_id", ID, ForeignKey("cart.id"), nullable=False, comment="Whose files"),
    Column("positions", Text, nullable=False, comment="Their places, as a JSON array"),
    Column("holder", Text, nullable=False, comment="Which process has staged them"),
    Column(
        "lease_until",
        Double,
        nullable=False,
        comment="Unix time from which another may verify them",
    ),
    comment="Staged files that a power failure may damage: nobody knows that the disk has them",
    # What is deleted while a sync is under way must not come back under the same id.
    sqlite_autoincrement=True,
)
