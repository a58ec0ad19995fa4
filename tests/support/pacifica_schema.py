"""Databases as Pacifica Cartd left them: its schemas 0.1, 1.0 and 2.0, carts in every state.

The statements are what its object-relational mapper sent to SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, create_engine, text

VERSIONS = ("0.1", "1.0", "2.0")

_TYPES = {
    "sqlite": {"serial": "INTEGER", "date": "DATETIME", "bool": "INTEGER"},
    "postgresql": {"serial": "SERIAL", "date": "TIMESTAMP", "bool": "BOOLEAN"},
}
_CARTSYSTEM = (
    'CREATE TABLE "cartsystem" ("part" VARCHAR(255) NOT NULL PRIMARY KEY, "value" INTEGER NOT NULL)'
)
_CART = (
    'CREATE TABLE "cart" ("id" {serial} NOT NULL PRIMARY KEY, "cart_uid" VARCHAR(255) NOT NULL,'
    ' "bundle_path" VARCHAR(255) NOT NULL, "creation_date" {date} NOT NULL,'
    ' "updated_date" {date} NOT NULL, "deleted_date" {date}, "status" TEXT NOT NULL,'
    ' "error" TEXT NOT NULL)'
)
_BUNDLE = 'ALTER TABLE "cart" ADD COLUMN "bundle" {bool}'
_CARTTASKS = (
    'CREATE TABLE "carttasks" ("id" {serial} NOT NULL PRIMARY KEY, "cart_id" INTEGER NOT NULL,'
    ' "celery_task_id" VARCHAR(255) NOT NULL, FOREIGN KEY ("cart_id") REFERENCES "cart" ("id"))',
    'CREATE INDEX "carttasks_cart_id" ON "carttasks" ("cart_id")',
)
_FILE = (
    'CREATE TABLE "file" ("id" {serial} NOT NULL PRIMARY KEY, "cart_id" INTEGER NOT NULL,'
    ' "file_name" VARCHAR(255) NOT NULL, "bundle_path" VARCHAR(255) NOT NULL,'
    ' "hash_type" VARCHAR(255), "hash_value" VARCHAR(255), "status" TEXT NOT NULL,'
    ' "error" TEXT NOT NULL, FOREIGN KEY ("cart_id") REFERENCES "cart" ("id"))',
    'CREATE INDEX "file_cart_id" ON "file" ("cart_id")',
)


def make_tables(connection: Connection, version: str) -> None:
    """Create the tables of ``version``, which is recorded in the table ``cartsystem``."""
    statements = [_CARTSYSTEM, _CART, *_FILE]
    if version != "0.1":
        statements.append(_BUNDLE)
    if version == "2.0":
        statements.extend(_CARTTASKS)
    for statement in statements:
        connection.execute(text(statement.format(**_TYPES[connection.dialect.name])))
    major, minor = version.split(".")
    for part, value in (("major", int(major)), ("minor", int(minor))):
        insert(connection, "cartsystem", part=part, value=value)


def insert(connection: Connection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)


def add_cart(
    connection: Connection,
    cart_id: int | None,
    status: str,
    *,
    uid: str = "u",
    bundle_path: str = "",
    bundle: bool | None = None,
    error: str = "",
    created: str = "2020-01-15 12:00:00",
    updated: str = "2020-07-15 12:00:00.250000",
    deleted: str | None = None,
    files: Iterable[dict[str, Any]] = (),
) -> None:
    """Add a cart, with ``bundle`` if the schema has it, and its files in that order.

    Without a ``cart_id`` the database chooses one.
    """
    dates = {"creation_date": created, "updated_date": updated, "deleted_date": deleted}
    values: dict[str, Any] = dict(dates)
    if connection.dialect.name == "postgresql":
        values = {name: date and datetime.fromisoformat(date) for name, date in dates.items()}
    if cart_id is not None:
        values["id"] = cart_id
    if bundle is not None:
        values["bundle"] = bundle
    insert(
        connection,
        "cart",
        cart_uid=uid,
        status=status,
        error=error,
        bundle_path=bundle_path,
        **values,
    )
    for file in files:
        defaults = {"hash_type": "sha1", "hash_value": "a" * 40, "status": "staged", "error": ""}
        insert(connection, "file", cart_id=cart_id, **{**defaults, **file})


def begin(url: str) -> Any:
    """A connection in a transaction that is committed at the end, independent of cartd."""
    return create_engine(url).begin()
