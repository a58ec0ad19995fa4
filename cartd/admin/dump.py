"""``cartd-cmd dump``: every active cart with its files, as YAML or JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TextIO

import yaml

from cartd.model import Cart, CartFile
from cartd.store import Store
from cartd.volume import Volume

Row = dict[str, object]


async def dump(store: Store, volume: Volume, out: TextIO, *, as_json: bool) -> None:
    """Write the carts one after the other: only one is in memory at a time.

    Keys and spelling are those of Pacifica Cartd, whose values are all text; what it did
    not know comes after them.
    """
    first = True
    async for cart in _carts(store, volume):
        if as_json:
            out.write("[" if first else ",\n")
            json.dump(cart, out)
        else:
            yaml.safe_dump([cart], out, sort_keys=False, allow_unicode=True)
        first = False
    if as_json:
        out.write("[]\n" if first else "]\n")
    elif first:
        out.write("[]\n")


async def _carts(store: Store, volume: Volume) -> AsyncIterator[Row]:
    for cart in await store.active():
        row = _cart_row(cart, volume)
        files: list[Row] = []
        while rows := await store.files(cart.id, after=len(files) - 1):
            files.extend(_file_row(cart, file) for file in rows)
        if files:
            row["files"] = files
        yield row


def _cart_row(cart: Cart, volume: Volume) -> Row:
    path = volume.tar(cart) if cart.bundle else volume.tree(cart)
    return _as_text(
        id=cart.id,
        cart_uid=cart.uid,
        bundle_path=path if cart.status == "ready" else "",
        bundle=cart.bundle,
        creation_date=_date(cart.created),
        updated_date=_date(cart.updated),
        deleted_date=None,
        status=cart.status,
        error=cart.error,
        used_date=_date(cart.used),
        files_total=cart.files_total,
        files_staged=cart.files_staged,
        bytes_total=cart.bytes_total,
        bytes_staged=cart.bytes_staged,
    )


def _file_row(cart: Cart, file: CartFile) -> Row:
    return _as_text(
        position=file.position,
        cart=cart.id,
        file_name=file.archive_id,
        bundle_path=file.path,
        hash_type=file.hash_type,
        hash_value=file.hash_sum,
        status=file.status,
        error=file.error,
        size=file.size,
        mtime=file.mtime,
    )


def _as_text(**values: object) -> Row:
    return {key: str(value) for key, value in values.items()}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ")
