"""cartd's first version: order, sizes and progress of files; leases and access times of carts.

Strategy: first add columns, then fill the rows, in the database where possible; last add the
constraints that the rows satisfy by then.  Pacifica's unfinished carts become carts that a stager
can claim.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "3.0"
down_revision = "2.0"

BATCH = 1000
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MANIFEST_LOST = "The manifest was lost with the old queue; post it again"
# Paths with an empty or "." component, which name the same file as without it.
UNTIDY = ("%//%", "./%", "%/./%", "%/.", "%/")

cart = sa.table(
    "cart",
    sa.column("id", sa.Integer),
    sa.column("cart_uid", sa.String),
    sa.column("bundle_path", sa.String),
    sa.column("bundle", sa.Boolean),
    sa.column("creation_date", sa.DateTime),
    sa.column("updated_date", sa.DateTime),
    sa.column("deleted_date", sa.DateTime),
    sa.column("removed_date", sa.DateTime),
    sa.column("used_date", sa.DateTime),
    sa.column("status", sa.Text),
    sa.column("error", sa.Text),
    sa.column("files_total", sa.Integer),
    sa.column("files_staged", sa.Integer),
    sa.column("files_failed", sa.Integer),
)
file = sa.table(
    "file",
    sa.column("id", sa.Integer),
    sa.column("cart_id", sa.Integer),
    sa.column("bundle_path", sa.String),
    sa.column("hash_type", sa.String),
    sa.column("hash_value", sa.String),
    sa.column("status", sa.Text),
    sa.column("error", sa.Text),
    sa.column("position", sa.Integer),
)
cartsystem = sa.table("cartsystem", sa.column("part", sa.String), sa.column("value", sa.Integer))


def upgrade() -> None:
    op.drop_table("carttasks")
    _widen_ids()
    _add_columns()
    _dates_to_utc()
    _fill_files()
    _tidy_paths()
    _fill_carts()
    _resume_unfinished()
    _clear_deleted()
    _count_files()
    _add_constraints()
    _create_label_table()
    _create_durability_tables()
    op.create_table(
        "secret",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    # Pacifica's programs read this, and reject a database of an unknown version.
    op.execute(cartsystem.delete())
    op.bulk_insert(cartsystem, [{"part": "major", "value": 3}, {"part": "minor", "value": 0}])


def _widen_ids() -> None:
    """PostgreSQL rewrites both tables, once each; sequences have a limit of their own."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("ALTER TABLE cart ALTER COLUMN id TYPE bigint")
    op.execute("ALTER TABLE file ALTER COLUMN id TYPE bigint, ALTER COLUMN cart_id TYPE bigint")
    for table in ("cart", "file"):
        named = sa.text(f"SELECT pg_get_serial_sequence('{table}', 'id')")
        if sequence := op.get_bind().scalar(named):
            op.execute(f"ALTER SEQUENCE {sequence} AS bigint")


def _add_columns() -> None:
    zero = sa.text("0")
    op.add_column("cart", sa.Column("problem", sa.Text))
    op.add_column("cart", sa.Column("used_date", sa.DateTime))
    op.add_column("cart", sa.Column("fingerprint", sa.String(64)))
    op.add_column("cart", sa.Column("files_total", sa.Integer, nullable=False, server_default=zero))
    op.add_column(
        "cart", sa.Column("files_staged", sa.Integer, nullable=False, server_default=zero)
    )
    op.add_column("cart", sa.Column("bytes_total", sa.BigInteger))
    op.add_column(
        "cart", sa.Column("bytes_staged", sa.BigInteger, nullable=False, server_default=zero)
    )
    op.add_column(
        "cart", sa.Column("volume_bytes", sa.BigInteger, nullable=False, server_default=zero)
    )
    op.add_column(
        "cart", sa.Column("bytes_linked", sa.BigInteger, nullable=False, server_default=zero)
    )
    op.add_column(
        "cart", sa.Column("invalidations", sa.Integer, nullable=False, server_default=zero)
    )
    op.add_column("cart", sa.Column("waits_since", sa.DateTime))
    op.add_column("cart", sa.Column("waits_for", sa.Text))
    op.add_column("cart", sa.Column("tape_since", sa.DateTime))
    op.add_column("cart", sa.Column("tape_files", sa.Integer))
    op.add_column("cart", sa.Column("verified_date", sa.DateTime))
    op.add_column("cart", sa.Column("removed_date", sa.DateTime))
    op.add_column("cart", sa.Column("owner", sa.String(255)))
    op.add_column("cart", sa.Column("tar_layout", sa.Integer))
    op.add_column("cart", sa.Column("tar_digest", sa.String(64)))
    op.add_column("cart", sa.Column("tar_lengths", sa.Text))
    op.add_column("cart", sa.Column("tar_date", sa.DateTime))
    tar = sa.text("'tar'")
    op.add_column("cart", sa.Column("format", sa.String(16), nullable=False, server_default=tar))
    op.add_column("cart", sa.Column("bag", sa.Text))
    op.add_column("cart", sa.Column("max_failed", sa.Integer))
    op.add_column("cart", sa.Column("evicting", sa.String(32)))
    op.add_column("cart", sa.Column("name", sa.Text))
    none = sa.text("'[]'")
    op.add_column("cart", sa.Column("labels", sa.Text, nullable=False, server_default=none))
    op.add_column("cart", sa.Column("started_date", sa.DateTime))
    op.add_column(
        "cart", sa.Column("files_failed", sa.Integer, nullable=False, server_default=zero)
    )
    op.add_column(
        "cart", sa.Column("files_linked", sa.Integer, nullable=False, server_default=zero)
    )
    op.add_column(
        "cart", sa.Column("size_linked", sa.BigInteger, nullable=False, server_default=zero)
    )
    op.add_column("cart", sa.Column("pace", sa.Text))
    op.add_column("cart", sa.Column("version", sa.Integer, nullable=False, server_default=zero))
    op.add_column("cart", sa.Column("lease_holder", sa.Text))
    op.add_column("cart", sa.Column("lease_until", sa.Double))
    op.add_column("file", sa.Column("problem", sa.Text))
    op.add_column("file", sa.Column("also_hash_type", sa.String(255)))
    op.add_column("file", sa.Column("also_hash_value", sa.Text))
    op.add_column("file", sa.Column("position", sa.Integer))
    op.add_column("file", sa.Column("size", sa.BigInteger))
    op.add_column("file", sa.Column("mtime", sa.BigInteger))
    op.add_column("file", sa.Column("linked_to", ID))


def _dates_to_utc() -> None:
    """Pacifica wrote local time; only Python knows each date's offset from UTC."""
    columns = [cart.c.creation_date, cart.c.updated_date, cart.c.deleted_date]
    change = cart.update().where(cart.c.id == sa.bindparam("row"))
    for rows in _pages(sa.select(cart.c.id, *columns), cart.c.id):
        changed = [
            {
                "row": row.id,
                "creation_date": _utc(row.creation_date),
                "updated_date": _utc(row.updated_date),
                "deleted_date": row.deleted_date and _utc(row.deleted_date),
                "used_date": _utc(row.updated_date),
            }
            for row in rows
        ]
        op.get_bind().execute(
            change.values({name: sa.bindparam(name) for name in changed[0] if name != "row"}),
            changed,
        )


def _utc(local: datetime) -> datetime:
    return local.astimezone(UTC).replace(tzinfo=None)


def _fill_files() -> None:
    """Pacifica inserted a manifest's entries in order, so their ids give their positions."""
    place = sa.func.row_number().over(partition_by=file.c.cart_id, order_by=file.c.id) - 1
    ranked = sa.select(file.c.id, place.label("place")).subquery()
    op.execute(
        file.update()
        .where(file.c.id == ranked.c.id)
        .values(
            position=ranked.c.place,
            hash_type=sa.func.coalesce(file.c.hash_type, ""),
            hash_value=sa.func.lower(sa.func.coalesce(file.c.hash_value, "")),
            bundle_path=sa.func.ltrim(file.c.bundle_path, "/"),
        )
    )


def _tidy_paths() -> None:
    untidy = sa.select(file.c.id, file.c.bundle_path).where(
        sa.or_(*(file.c.bundle_path.like(pattern) for pattern in UNTIDY))
    )
    change = (
        file.update()
        .where(file.c.id == sa.bindparam("row"))
        .values(bundle_path=sa.bindparam("path"))
    )
    for rows in _pages(untidy, file.c.id):
        changed = [{"row": row.id, "path": _tidied(row.bundle_path)} for row in rows]
        op.get_bind().execute(change, changed)


def _tidied(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _fill_carts() -> None:
    """In version 0.1 only the path says whether a cart is bundled."""
    bundled = sa.func.coalesce(cart.c.bundle, sa.false()) | cart.c.bundle_path.like(
        sa.literal("%") + cart.c.cart_uid + sa.literal(".tar")
    )
    op.execute(cart.update().values(bundle=sa.case((bundled, sa.true()), else_=sa.false())))
    op.execute(cart.update().where(cart.c.deleted_date.is_not(None)).values(status="deleted"))


def _resume_unfinished() -> None:
    """Unfinished carts start again, but a manifest that only the queue had is lost.

    Their staged files wait as well, as their sizes are unknown.  Intact files on the volume are not
    fetched again.
    """
    unfinished = cart.c.status.not_in(["ready", "error", "deleted"])
    has_files = sa.exists().where(file.c.cart_id == cart.c.id)
    op.execute(
        cart.update().where(unfinished, ~has_files).values(status="error", error=MANIFEST_LOST)
    )
    op.execute(
        cart.update()
        .where(unfinished, cart.c.status.not_in(["waiting", "staging"]))
        .values(status="waiting")
    )
    op.execute(
        file.update()
        .where(file.c.cart_id.in_(sa.select(cart.c.id).where(unfinished)))
        .values(status="waiting", error="")
    )
    known = ["waiting", "staging", "staged", "error"]
    op.execute(file.update().where(file.c.status.not_in(known)).values(status="waiting"))


def _clear_deleted() -> None:
    """Files of deleted carts must not look as if they were on the volume."""
    op.execute(cart.update().values(removed_date=cart.c.deleted_date))
    deleted = sa.select(cart.c.id).where(cart.c.deleted_date.is_not(None))
    op.execute(file.update().where(file.c.cart_id.in_(deleted)).values(status="deleted", error=""))


def _count_files() -> None:
    staged = sa.func.sum(sa.case((file.c.status == "staged", 1), else_=0)).label("staged")
    failed = sa.func.sum(sa.case((file.c.status == "error", 1), else_=0)).label("failed")
    counted = (
        sa.select(file.c.cart_id, sa.func.count().label("total"), staged, failed)
        .group_by(file.c.cart_id)
        .subquery()
    )
    op.execute(
        cart.update()
        .where(cart.c.id == counted.c.cart_id)
        .values(
            files_total=counted.c.total,
            files_staged=counted.c.staged,
            files_failed=counted.c.failed,
        )
    )


def _add_constraints() -> None:
    # Ids of carts are never reused, on SQLite either: they name directories on the volume.
    kept_ids = {"sqlite_autoincrement": True}
    with op.batch_alter_table("cart", table_kwargs=kept_ids) as batch:
        batch.drop_column("bundle_path")
        batch.alter_column(
            "bundle",
            existing_type=sa.Boolean(),
            type_=sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
        )
        batch.alter_column("used_date", existing_type=sa.DateTime(), nullable=False)
    op.drop_index("file_cart_id", "file", if_exists=True)
    with op.batch_alter_table("file") as batch:
        short = sa.String(255)
        batch.alter_column("file_name", existing_type=short, type_=sa.Text())
        batch.alter_column("bundle_path", existing_type=short, type_=sa.Text())
        batch.alter_column("hash_type", existing_type=short, nullable=False)
        batch.alter_column("hash_value", existing_type=short, type_=sa.Text(), nullable=False)
        batch.alter_column("position", existing_type=sa.Integer(), nullable=False)
    op.create_index("cart_uid_id", "cart", ["cart_uid", "id"])
    _create_partial_index("cart_living", "cart", ["status", "id"], "deleted_date IS NULL")
    partial = "deleted_date IS NULL AND status = 'ready' AND files_failed > 0"
    _create_partial_index("cart_partial", "cart", ["status", "id"], partial)
    owned = "deleted_date IS NULL AND owner IS NOT NULL"
    _create_partial_index("cart_owner_uid_id", "cart", ["owner", "cart_uid", "id"], owned)
    _create_partial_index("cart_owner_status", "cart", ["owner", "status", "id"], owned)
    pending = "deleted_date IS NOT NULL AND removed_date IS NULL"
    _create_partial_index("cart_pending_removal", "cart", ["id"], pending)
    _create_partial_index("cart_leased", "cart", ["lease_holder"], "lease_holder IS NOT NULL")
    _create_partial_index("cart_evicting", "cart", ["id"], "evicting IS NOT NULL")
    _create_partial_index("cart_removed", "cart", ["removed_date"], "removed_date IS NOT NULL")
    op.create_index("file_cart_id_position", "file", ["cart_id", "position"], unique=True)
    _create_partial_index("file_staged", "file", ["file_name"], "status = 'staged'")
    _create_partial_index("file_failed", "file", ["cart_id", "position"], "status = 'error'")
    _create_partial_index("file_linked_to", "file", ["linked_to"], "linked_to IS NOT NULL")


def _create_label_table() -> None:
    """Create it empty: no cart of Pacifica's has labels."""
    op.create_table(
        "cart_label",
        sa.Column("label", sa.Text, primary_key=True),
        sa.Column("cart_id", ID, sa.ForeignKey("cart.id"), primary_key=True),
        sa.Column("owner", sa.String(255)),
        sqlite_with_rowid=False,
    )
    owned = ["owner", "label", "cart_id"]
    _create_partial_index("cart_label_owner", "cart_label", owned, "owner IS NOT NULL")
    op.create_index("cart_label_cart_id", "cart_label", ["cart_id"])


def _create_durability_tables() -> None:
    op.create_table(
        "dirty_files",
        sa.Column("id", ID, primary_key=True),
        sa.Column("cart_id", ID, sa.ForeignKey("cart.id"), nullable=False),
        sa.Column("positions", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "page_cache",
        sa.Column("holder", sa.Text, primary_key=True),
        sa.Column("cache", sa.Text, nullable=False),
    )


def _create_partial_index(name: str, table: str, columns: Sequence[str], where: str) -> None:
    rows = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=rows, postgresql_where=rows)


def _pages(query: Any, key: Any) -> Iterator[list[Any]]:
    """Yield the rows of ``query`` by key, in batches: the table may be larger than memory."""
    last = -1
    while rows := (
        op.get_bind().execute(query.where(key > last).order_by(key).limit(BATCH)).fetchall()
    ):
        yield list(rows)
        last = rows[-1].id
