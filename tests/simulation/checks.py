"""Checks of the invariants in the tables and in the files themselves."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cartd.model import FileStatus
from tests.simulation.archive import PERMANENT, ArchiveState, content
from tests.simulation.oracle import Oracle, Spec
from tests.simulation.process import Machine, files_below

_NOT_DELETED = "deleted_date IS NULL"
_LOST = ("is missing on the volume", "were recorded", "while it was read")


class Checks:
    """Each check appends violations to the oracle's list."""

    def __init__(self, machine: Machine, oracle: Oracle, archive_state: ArchiveState) -> None:
        self._machine = machine
        self._oracle = oracle
        self._archive_state = archive_state

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self._machine.database_file)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()

    def unfinished(self) -> list[int]:
        found = self.rows(
            f"SELECT id FROM cart WHERE {_NOT_DELETED} AND status NOT IN ('ready', 'error')"
        )
        return [row["id"] for row in found]

    def check_always(self) -> None:
        """Check what holds at any moment, even right after a kill."""
        carts = {row["id"]: row for row in self.rows("SELECT * FROM cart")}
        self._check_no_cart_is_lost(carts)
        self._read_file_rows()
        for cart_id, row in carts.items():
            if row["deleted_date"] is None:
                self._check_contents(cart_id, row)

    def check_idle(self) -> None:
        """Check what holds when all faults are healed and nothing is under way."""
        carts = {row["id"]: row for row in self.rows("SELECT * FROM cart")}
        live = {key: row for key, row in carts.items() if row["deleted_date"] is None}
        self._check_no_cart_is_lost(carts)
        self._read_file_rows(idle=True)
        for cart_id, row in live.items():
            if row["evicting"] is not None:
                self._wrong(f"cart {cart_id} is stuck in eviction")
            self._check_contents(cart_id, row)
            self._check_final_status(cart_id, row)
            self._check_totals(cart_id, row)
        for cart_id in self._oracle.must_be_deleted & live.keys():
            self._wrong(f"cart {cart_id} was deleted, but still exists")
        self._check_no_leftovers(live)
        self._check_hard_links(live)
        self._check_byte_accounting(live)

    def _wrong(self, sentence: str) -> None:
        self._oracle.violations.append(sentence)

    def _check_no_cart_is_lost(self, carts: dict[int, sqlite3.Row]) -> None:
        for cart_id, spec in self._oracle.accepted.items():
            row = carts.get(cart_id)
            if row is None:
                self._wrong(f"cart {cart_id} was accepted, but is lost")
                continue
            if (row["cart_uid"], row["fingerprint"]) != (spec.uid, spec.fingerprint):
                self._wrong(f"cart {cart_id} has another uid or manifest")
            gone = row["deleted_date"] is not None
            if gone and cart_id not in self._oracle.may_be_deleted and not self._oracle.evicts:
                self._wrong(f"cart {cart_id} was deleted without a request")

    def _read_file_rows(self, *, idle: bool = False) -> None:
        """Read which files are staged and synced to the disk; when idle, all are."""
        staged = self.rows("SELECT cart_id, position FROM file WHERE status = 'staged'")
        dirty = [] if idle else self.rows("SELECT cart_id, positions FROM dirty_files")
        self._synced = {tuple(row) for row in staged}.difference(
            (row["cart_id"], position) for row in dirty for position in json.loads(row["positions"])
        )

    def _check_contents(self, cart_id: int, row: sqlite3.Row) -> None:
        if cart_id in self._oracle.damaged:
            return
        spec = self._spec(row)
        top = self._machine.volume / str(cart_id)
        tar = top / f"{spec.uid}.tar"
        if tar.exists():
            created = datetime.fromisoformat(row["creation_date"]).replace(tzinfo=UTC)
            if tar.read_bytes() != spec.tar(spec.uid, created.timestamp()):
                self._wrong(f"{tar} holds wrong bytes")
            return  # leftovers of its tree do not matter
        for position, (name, body) in enumerate(_expected(spec, top)):
            synced = (cart_id, position) in self._synced and not row["bundle"]
            # An interrupted eviction is marked in the store.
            synced = synced and row["evicting"] is None
            if not os.path.lexists(name):
                if synced:
                    self._wrong(f"{name} is staged, but missing")
            elif name.read_bytes() != body and (
                synced or not self._machine.disk.unsynced.is_corrupt(name)
            ):
                self._wrong(f"{name} holds wrong bytes")

    def _tar_size(self, row: sqlite3.Row) -> int:
        """Return the size of the cart's tar, or 0."""
        tar = self._machine.volume / str(row["id"]) / f"{row['cart_uid']}.tar"
        return tar.stat().st_size if tar.exists() else 0

    def _spec(self, row: sqlite3.Row) -> Spec:
        return self._oracle.specs[row["cart_uid"], row["fingerprint"]]

    def _check_final_status(self, cart_id: int, row: sqlite3.Row) -> None:
        if row["status"] == "ready":
            if row["error"]:
                self._wrong(f"ready cart {cart_id} has the error {row['error']}")
            top = self._machine.volume / str(cart_id)
            spec = self._spec(row)
            there = {str(path) for path in files_below(top)}
            lacking = self._check_failed_files(row, spec)
            names = (
                {str(top / f"{spec.uid}.tar")}
                if spec.bundle and not lacking
                else {
                    str(name)
                    for at, (name, _) in enumerate(_expected(spec, top))
                    if at not in lacking
                }
            )
            if there != names and not self._has_undetected_damage(row):
                self._wrong(f"ready cart {cart_id} has extra or missing files: {there ^ names}")
        elif row["status"] == "error":
            if not self._is_real_cause(row):
                self._wrong(f"cart {cart_id} is in error without a cause: {row['error']}")
        else:
            self._wrong(f"cart {cart_id} is stuck in {row['status']}")

    def _check_failed_files(self, row: sqlite3.Row, spec: Spec) -> set[int]:
        """Check the failed files of a ready cart; return their positions."""
        failed = self.rows("SELECT * FROM file WHERE cart_id = ? AND status = 'error'", row["id"])
        if len(failed) != row["files_failed"] or len(failed) > (spec.max_failed or 0):
            numbers = f"{row['files_failed']} files of {spec.max_failed}"
            self._wrong(f"ready cart {row['id']} lacks {len(failed)} files, counted as {numbers}")
        for one in failed:
            said = self._archive_state.messages[one["file_name"]]
            if not any(message in one["error"] for message in said) and "404" not in one["error"]:
                self._wrong(f"file {one['bundle_path']} failed without a cause: {one['error']}")
        return {one["position"] for one in failed}

    def _has_undetected_damage(self, row: sqlite3.Row) -> bool:
        """Whether damage of the cart may be undetected, as only the newest cart is downloaded."""
        newest = self.rows(
            f"SELECT max(id) AS id FROM cart WHERE {_NOT_DELETED} AND cart_uid = ?", row["cart_uid"]
        )[0]["id"]
        unread = row["status"] == "error" or row["id"] != newest
        return row["id"] in self._oracle.damaged and unread

    def _is_real_cause(self, row: sqlite3.Row) -> bool:
        """Whether the error names a fault that was injected."""
        error: str = row["error"]
        disk = self._machine.disk
        if error.startswith("Cannot free space on the volume: "):
            return self._oracle.evicts and disk.has_raised(error)
        if error == "No Space Available":
            return self._oracle.evicts or os.strerror(28) in {os.strerror(n) for n in disk.failed}
        if disk.has_raised(error):
            return True
        if row["id"] in self._oracle.damaged and error.endswith(_LOST):
            return True
        for one in self._spec(row).files:
            if f"{one.path} (archive id {one.archive_id})" in error:
                said = self._archive_state.messages[one.archive_id]
                enough = (
                    self._archive_state.fault_counts[one.archive_id] >= 3
                    or PERMANENT in error
                    or "404" in error
                )
                return enough and any(message in error for message in said)
        return False

    def _check_totals(self, cart_id: int, row: sqlite3.Row) -> None:
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
        ended = row["files_staged"] + row["files_failed"]
        if row["status"] == "ready" and ended != row["files_total"]:
            self._wrong(f"ready cart {cart_id} has unstaged files")
        if row["status"] == "ready" and row["bytes_total"] != row["bytes_staged"]:
            self._wrong(f"ready cart {cart_id} has {row['bytes_total']} bytes")

    def _check_no_leftovers(self, live: dict[int, sqlite3.Row]) -> None:
        volume = self._machine.volume
        # Files that a failing disk did not remove stay until the cart is restaged or deleted.
        left = list(files_below(volume / "incoming"))
        if left and not self._machine.disk.failed:
            self._wrong(f"leftovers in incoming: {left}")
        for entry in volume.iterdir():
            if entry.name.isdigit() and int(entry.name) not in live:
                self._wrong(f"leftovers of cart {entry.name}: {list(files_below(entry))}")
        for link in (volume / "cartuids").iterdir():
            target = link.readlink()
            if int(target.parts[1]) not in live:
                self._wrong(f"{link} leads to {target}")

    def _check_hard_links(self, live: dict[int, sqlite3.Row]) -> None:
        links = self.rows(
            "SELECT mine.cart_id, mine.bundle_path, other.cart_id, other.bundle_path,"
            " other.status, other.linked_to FROM file AS mine"
            " LEFT JOIN file AS other ON other.id = mine.linked_to"
            " WHERE mine.linked_to IS NOT NULL"
        )
        for mine, path, other, its_path, status, further in links:
            if other not in live or status != "staged" or further is not None:
                self._wrong(f"{path} of cart {mine} is linked to a file that does not exist")
            elif not {mine, other} & self._oracle.damaged:
                names = [
                    self._machine.volume / str(cart) / live[cart]["cart_uid"] / name
                    for cart, name in ((mine, path), (other, its_path))
                ]
                if not all(map(Path.exists, names)) or not names[0].samefile(names[1]):
                    self._wrong(f"{names[0]} and {names[1]} are not hard links of one file")

    def _check_byte_accounting(self, live: dict[int, sqlite3.Row]) -> None:
        if any(map(self._has_undetected_damage, live.values())):
            return
        counted = sum(row["volume_bytes"] - row["bytes_linked"] for row in live.values())
        found = {
            (status.st_dev, status.st_ino): status.st_size
            for cart_id in live
            for status in map(Path.lstat, files_below(self._machine.volume / str(cart_id)))
        }
        # Files of a cart in error that wait for verification still count, and so do files that a
        # failing disk did not let verify.
        waiting = sum(
            row["volume_bytes"] - (self._tar_size(row) or row["bytes_staged"])
            for row in live.values()
            if row["status"] == "error"
        )
        if not counted - waiting <= sum(found.values()) <= counted:
            self._wrong(f"{counted} bytes are counted, but {sum(found.values())} exist")
            for key, row in live.items():
                numbers = [row[name] for name in ("volume_bytes", "bytes_staged", "bytes_linked")]
                files = [
                    (str(path.relative_to(self._machine.volume)), path.stat().st_ino)
                    for path in files_below(self._machine.volume / str(key))
                ]
                self._wrong(f"  cart {key}, {row['status']} {row['error']}: {numbers}, {files}")


def _expected(spec: Spec, top: Path) -> Iterator[tuple[Path, bytes]]:
    for one in spec.files:
        yield top / spec.uid / one.path, content(one.archive_id)


def all_finished(checks: Checks) -> Callable[[], bool]:
    return lambda: not checks.unfinished()
