"""The sentences that must hold, asked of the tables and the files themselves."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cartd.model import FileStatus
from tests.simulation.archive import FINAL, Library, content
from tests.simulation.oracle import Ledger, Spec
from tests.simulation.process import Place, files_below

_LIVING = "deleted_date IS NULL"
_LOST = ("is missing on the volume", "were recorded", "while it was read")


class Checks:
    """Each check appends what is wrong to the ledger's list."""

    def __init__(self, place: Place, ledger: Ledger, library: Library) -> None:
        self._place = place
        self._ledger = ledger
        self._library = library

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self._place.database_file)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()

    def unfinished(self) -> list[int]:
        found = self.rows(
            f"SELECT id FROM cart WHERE {_LIVING} AND status NOT IN ('ready', 'error')"
        )
        return [row["id"] for row in found]

    def of_every_moment(self) -> None:
        """What holds whenever somebody looks, after a kill above all."""
        carts = {row["id"]: row for row in self.rows("SELECT * FROM cart")}
        self._no_cart_is_lost(carts)
        self._look_at_files()
        for cart_id, row in carts.items():
            if row["deleted_date"] is None:
                self._names_hold_their_bytes(cart_id, row)

    def of_a_quiet_volume(self) -> None:
        """What holds when every fault is healed and nothing is under way."""
        carts = {row["id"]: row for row in self.rows("SELECT * FROM cart")}
        living = {key: row for key, row in carts.items() if row["deleted_date"] is None}
        self._no_cart_is_lost(carts)
        self._look_at_files(quiet=True)
        for cart_id, row in living.items():
            if row["evicting"] is not None:
                self._wrong(f"cart {cart_id} is being evicted for ever")
            self._names_hold_their_bytes(cart_id, row)
            self._ended_well_or_truly(cart_id, row)
            self._totals_are_right(cart_id, row)
        for cart_id in self._ledger.must_be_deleted & living.keys():
            self._wrong(f"cart {cart_id} was deleted and lives")
        self._nothing_is_left_over(living)
        self._links_are_two_names(living)
        self._each_byte_counts_once(living)

    def _wrong(self, sentence: str) -> None:
        self._ledger.wrong.append(sentence)

    def _no_cart_is_lost(self, carts: dict[int, sqlite3.Row]) -> None:
        for cart_id, spec in self._ledger.accepted.items():
            row = carts.get(cart_id)
            if row is None:
                self._wrong(f"cart {cart_id} was accepted and is lost")
                continue
            if (row["cart_uid"], row["fingerprint"]) != (spec.uid, spec.fingerprint):
                self._wrong(f"cart {cart_id} is another one")
            gone = row["deleted_date"] is not None
            if gone and cart_id not in self._ledger.may_be_deleted and not self._ledger.evicts:
                self._wrong(f"cart {cart_id} was deleted and nobody asked for it")

    def _look_at_files(self, *, quiet: bool = False) -> None:
        """See which files are staged, and not known to be in doubt: in the end nothing is."""
        staged = self.rows("SELECT cart_id, position FROM file WHERE status = 'staged'")
        noted = [] if quiet else self.rows("SELECT cart_id, positions FROM unsynced")
        self._certain = {tuple(row) for row in staged}.difference(
            (row["cart_id"], position) for row in noted for position in json.loads(row["positions"])
        )

    def _names_hold_their_bytes(self, cart_id: int, row: sqlite3.Row) -> None:
        if cart_id in self._ledger.damaged:
            return
        spec = self._spec(row)
        top = self._place.volume / str(cart_id)
        tar = top / f"{spec.uid}.tar"
        if tar.exists():
            if tar.read_bytes() != spec.tar(spec.uid):
                self._wrong(f"{tar} holds wrong bytes")
            return  # what is left of its tree is of no use
        for position, (name, body) in enumerate(_expected(spec, top)):
            certain = (cart_id, position) in self._certain and not row["bundle"]
            # Of an eviction that was cut short, the store has a note.
            certain = certain and row["evicting"] is None
            if not os.path.lexists(name):
                if certain:
                    self._wrong(f"{name} is staged and not there")
            elif name.read_bytes() != body and (
                certain or not self._place.disk.in_memory.is_spoilt(name)
            ):
                self._wrong(f"{name} holds wrong bytes")

    def _tar_size(self, row: sqlite3.Row) -> int:
        """Zero if it has none."""
        tar = self._place.volume / str(row["id"]) / f"{row['cart_uid']}.tar"
        return tar.stat().st_size if tar.exists() else 0

    def _spec(self, row: sqlite3.Row) -> Spec:
        return self._ledger.specs[row["cart_uid"], row["fingerprint"]]

    def _ended_well_or_truly(self, cart_id: int, row: sqlite3.Row) -> None:
        if row["status"] == "ready":
            if row["error"]:
                self._wrong(f"ready cart {cart_id} has the error {row['error']}")
            top = self._place.volume / str(cart_id)
            spec = self._spec(row)
            there = {str(path) for path in files_below(top)}
            names = (
                {str(top / f"{spec.uid}.tar")}
                if spec.bundle
                else {str(name) for name, _ in _expected(spec, top)}
            )
            if there != names and not self._is_unnoticed(row):
                self._wrong(f"ready cart {cart_id} has {there ^ names} too much or too little")
        elif row["status"] == "error":
            if not self._is_true(row):
                self._wrong(f"cart {cart_id} is in error without a cause: {row['error']}")
        else:
            self._wrong(f"cart {cart_id} is {row['status']} for ever")

    def _is_unnoticed(self, row: sqlite3.Row) -> bool:
        """Whether a file of it may be damaged: only what is downloaded is looked at."""
        newest = self.rows(
            f"SELECT max(id) AS id FROM cart WHERE {_LIVING} AND cart_uid = ?", row["cart_uid"]
        )[0]["id"]
        unread = row["status"] == "error" or row["id"] != newest
        return row["id"] in self._ledger.damaged and unread

    def _is_true(self, row: sqlite3.Row) -> bool:
        """Whether the error names a fault that was made."""
        error: str = row["error"]
        disk = self._place.disk
        if error.startswith("The volume cannot be freed: "):
            return self._ledger.evicts and disk.has_said(error)
        if error == "No Space Available":
            return self._ledger.evicts or os.strerror(28) in {os.strerror(n) for n in disk.failed}
        if disk.has_said(error):
            return True
        if row["id"] in self._ledger.damaged and error.endswith(_LOST):
            return True
        for one in self._spec(row).files:
            if f"{one.path} (archive id {one.archive_id})" in error:
                said = self._library.said[one.archive_id]
                enough = self._library.met[one.archive_id] >= 3 or FINAL in error or "404" in error
                return enough and any(message in error for message in said)
        return False

    def _totals_are_right(self, cart_id: int, row: sqlite3.Row) -> None:
        files = self.rows("SELECT * FROM file WHERE cart_id = ?", cart_id)
        staged = [one for one in files if one["status"] == FileStatus.STAGED.value]
        linked = [one for one in staged if one["linked_to"] is not None]
        counts = {
            "files_total": len(files),
            "files_staged": len(staged),
            "bytes_staged": sum(one["size"] for one in staged),
            "bytes_linked": sum(one["size"] for one in linked),
        }
        for name, value in counts.items():
            if row[name] != value:
                self._wrong(f"{name} of cart {cart_id} is {row[name]}, not {value}")
        if row["status"] == "ready" and row["files_staged"] != row["files_total"]:
            self._wrong(f"ready cart {cart_id} has unstaged files")

    def _nothing_is_left_over(self, living: dict[int, sqlite3.Row]) -> None:
        volume = self._place.volume
        # What a failing disk has not removed is left until the cart is staged again, or goes.
        left = list(files_below(volume / "incoming"))
        if left and not self._place.disk.failed:
            self._wrong(f"left in incoming: {left}")
        for entry in volume.iterdir():
            if entry.name.isdigit() and int(entry.name) not in living:
                self._wrong(f"left of cart {entry.name}: {list(files_below(entry))}")
        for link in (volume / "cartuids").iterdir():
            target = link.readlink()
            if int(target.parts[1]) not in living:
                self._wrong(f"{link} leads to {target}")

    def _links_are_two_names(self, living: dict[int, sqlite3.Row]) -> None:
        links = self.rows(
            "SELECT mine.cart_id, mine.bundle_path, other.cart_id, other.bundle_path,"
            " other.status, other.linked_to FROM file AS mine"
            " LEFT JOIN file AS other ON other.id = mine.linked_to"
            " WHERE mine.linked_to IS NOT NULL"
        )
        for mine, path, other, its_path, status, further in links:
            if other not in living or status != "staged" or further is not None:
                self._wrong(f"{path} of cart {mine} is linked to what is not there")
            elif not {mine, other} & self._ledger.damaged:
                names = [
                    self._place.volume / str(cart) / living[cart]["cart_uid"] / name
                    for cart, name in ((mine, path), (other, its_path))
                ]
                if not all(map(Path.exists, names)) or not names[0].samefile(names[1]):
                    self._wrong(f"{names[0]} and {names[1]} are not one file")

    def _each_byte_counts_once(self, living: dict[int, sqlite3.Row]) -> None:
        if any(map(self._is_unnoticed, living.values())):
            return
        counted = sum(row["volume_bytes"] - row["bytes_linked"] for row in living.values())
        found = {
            (status.st_dev, status.st_ino): status.st_size
            for cart_id in living
            for status in map(Path.lstat, files_below(self._place.volume / str(cart_id)))
        }
        # Of a cart in error, what waits to be verified when it is staged again counts as before, as
        # does what a failing disk has let nobody look at.
        waiting = sum(
            row["volume_bytes"] - (self._tar_size(row) or row["bytes_staged"])
            for row in living.values()
            if row["status"] == "error"
        )
        if not counted - waiting <= sum(found.values()) <= counted:
            self._wrong(f"{counted} bytes are counted where {sum(found.values())} are")
            for key, row in living.items():
                numbers = [row[name] for name in ("volume_bytes", "bytes_staged", "bytes_linked")]
                files = [
                    (str(path.relative_to(self._place.volume)), path.stat().st_ino)
                    for path in files_below(self._place.volume / str(key))
                ]
                self._wrong(f"  cart {key}, {row['status']} {row['error']}: {numbers}, {files}")


def _expected(spec: Spec, top: Path) -> Iterator[tuple[Path, bytes]]:
    for one in spec.files:
        yield top / spec.uid / one.path, content(one.archive_id)


def settled(checks: Checks) -> Callable[[], bool]:
    return lambda: not checks.unfinished()
