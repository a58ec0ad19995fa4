"""``cartd-cmd dump``: every active cart with its files, as YAML or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, TextIO

import yaml

from cartd.model import Cart, CartFile, CartStatus
from cartd.store import Store
from cartd.volume import Volume

Row = dict[str, str]


async def dump(store: Store, volume: Volume, out: TextIO, *, as_json: bool) -> None:
    """Write the carts one after the other, and their files page by page.

    The keys, and that all values are text, are Pacifica Cartd's; new keys come after them.
    """
    form: Form = JsonForm(out) if as_json else YamlForm(out)
    for cart in await store.carts.active():
        form.begin(_cart_row(cart, volume))
        after = -1
        while files := await store.carts.files(cart.id, after=after):
            form.add_files([_file_row(cart, file) for file in files])
            after = files[-1].position
        form.end()
    form.finish()


class Form(Protocol):
    """Writes a list of carts; a cart without files has no key ``files``."""

    def begin(self, cart: Row) -> None: ...
    def add_files(self, files: Sequence[Row]) -> None: ...
    def end(self) -> None: ...
    def finish(self) -> None: ...


class JsonForm:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._before_cart = "["
        self._before_files = ""

    def begin(self, cart: Row) -> None:
        self._out.write(self._before_cart + json.dumps(cart).removesuffix("}"))
        self._before_cart = ",\n"
        self._before_files = ', "files": ['

    def add_files(self, files: Sequence[Row]) -> None:
        self._out.write(self._before_files + ", ".join(map(json.dumps, files)))
        self._before_files = ", "

    def end(self) -> None:
        self._out.write("]}" if self._before_files == ", " else "}")

    def finish(self) -> None:
        self._out.write("[]\n" if self._before_cart == "[" else "]\n")


class YamlForm:
    _dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    """libyaml's, where available: many times as fast."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._any = False
        self._before_files = ""

    def begin(self, cart: Row) -> None:
        self._out.write(self._text([cart]))
        self._any = True
        self._before_files = "  files:\n"

    def add_files(self, files: Sequence[Row]) -> None:
        self._out.write(self._before_files + textwrap.indent(self._text(files), "  "))
        self._before_files = ""

    def end(self) -> None:
        pass

    def finish(self) -> None:
        if not self._any:
            self._out.write("[]\n")

    def _text(self, rows: Sequence[Row]) -> str:
        text: str = yaml.dump(list(rows), Dumper=self._dumper, sort_keys=False, allow_unicode=True)
        return text


def _cart_row(cart: Cart, volume: Volume) -> Row:
    return _as_text(
        id=cart.id,
        cart_uid=cart.uid,
        bundle_path=_bundle_path(cart, volume),
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
        waits_since=None if cart.waits_since is None else _date(cart.waits_since),
        waits_for=cart.waits_for,
        tape_since=None if cart.tape_since is None else _date(cart.tape_since),
        tape_files=cart.tape_files,
        owner=cart.owner,
    )


def _bundle_path(cart: Cart, volume: Volume) -> object:
    """Return the path; empty unless ready, because only then the name is known to be valid."""
    if cart.status != CartStatus.READY:
        return ""
    return volume.paths.tar(cart) if cart.bundle else volume.paths.tree(cart)


def _file_row(cart: Cart, file: CartFile) -> Row:
    return _as_text(
        id=file.id,
        cart=cart.id,
        file_name=file.archive_id,
        bundle_path=file.path,
        hash_type=file.hash_type,
        hash_value=file.hash_sum,
        status=file.status,
        error=file.error,
        position=file.position,
        size=file.size,
        mtime=file.mtime,
    )


def _as_text(**values: object) -> Row:
    return {key: str(value) for key, value in values.items()}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ")
