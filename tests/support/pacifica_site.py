"""A site as Pacifica Cartd left it: a database, a volume and a configuration file."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from tests.support.archived_carts import content
from tests.support.pacifica_schema import add_cart, begin, make_tables

CONFIGURATION = """
[cartd]
volume_path = {volume}
lru_buffer_time = 0
lru_purge = on
bundle_task = off
transfer_size = 4 Mb

[database]
peewee_url = sqliteext:///{database}
connect_attempts = 10
connect_wait = 20
debug_logging = False

[archiveinterface]
url = {archive}

[celery]
broker_url = pyamqp://
backend_url = rpc://
"""

FILES = ("a", "d/b", "d/c")
MTIME = 1_500_000_000


def data_of(uid: str, path: str) -> bytes:
    return content(f"{uid}/{path}", 1000 + len(path))


class PacificaSite:
    """Carts of FILES, whose ids in the archive are ``UID/PATH``."""

    def __init__(self, directory: Path, version: str) -> None:
        directory.mkdir()
        self.volume = directory / "volume"
        self.database = directory / "db.sqlite3"
        self._version = version
        with begin(f"sqlite:///{self.database}") as connection:
            make_tables(connection, version)
            self._fill(connection)

    def configuration(self, archive: str) -> str:
        return CONFIGURATION.format(volume=self.volume, database=self.database, archive=archive)

    def _fill(self, connection: Connection) -> None:
        self._add(connection, 1, "tree", "ready")
        self._write_tree(1, "tree", {path: data_of("tree", path) for path in FILES})
        self._add(connection, 2, "bundle", "ready", bundle=True, updated="2020-01-20 12:00:00")
        self._write_tar(2, "bundle")
        # Its second file was cut when the workers were stopped, its third not begun.
        self._add(connection, 3, "half", "staging", statuses=("staged", "staging", "waiting"))
        half = {"a": data_of("half", "a"), "d/b": data_of("half", "d/b")[:100]}
        self._write_tree(3, "half", half)
        # All was staged, and the tar begun; the first version does not record that.
        self._add(connection, 4, "tarring", "staging", bundle=True)
        self._write_tree(4, "tarring", {path: data_of("tarring", path) for path in FILES})
        if self._version != "0.1":
            (self.volume / "4/tarring.tar").write_bytes(bytes(20_480))
        self._add(connection, 5, "lost", "ready")
        self._add(connection, 6, "torn", "ready", bundle=True)
        self._write_tar(6, "torn")
        os.truncate(self.volume / "6/torn.tar", 3000)
        self._add(
            connection,
            7,
            "failed",
            "error",
            statuses=("staged", "error", "waiting"),
            error="Failed to pull file(gone)",
            updated="2020-02-01 12:00:00",
        )
        self._write_tree(7, "failed", {"a": data_of("failed", "a")})
        self._add(connection, 8, "deleted", "deleted", deleted="2020-08-01 00:00:00")
        self._add(connection, 9, "unheard", "staging", files=())

    def _add(
        self,
        connection: Connection,
        cart_id: int,
        uid: str,
        status: str,
        *,
        bundle: bool = False,
        statuses: tuple[str, ...] = ("staged",) * len(FILES),
        files: tuple[str, ...] = FILES,
        **more: Any,
    ) -> None:
        ready = status == "ready"
        add_cart(
            connection,
            cart_id,
            status,
            uid=uid,
            bundle_path=f"{self.volume}/{cart_id}/{uid}{'.tar' * bundle}" if ready else "",
            bundle=None if self._version == "0.1" else bundle,
            files=[
                {
                    "file_name": f"{uid}/{path}",
                    "bundle_path": path,
                    "hash_value": hashlib.sha1(data_of(uid, path)).hexdigest().upper(),
                    "status": file_status,
                    "error": "gone" if file_status == "error" else "",
                }
                for path, file_status in zip(files, statuses, strict=False)
            ],
            **more,
        )

    def _write_tree(self, cart_id: int, uid: str, files: Mapping[str, bytes]) -> Path:
        tree = self.volume / str(cart_id) / uid
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
            os.utime(tree / path, (MTIME, MTIME))
        self._link(tree)
        return tree

    def _write_tar(self, cart_id: int, uid: str) -> None:
        files = {path: data_of(uid, path) for path in FILES}
        tree = self._write_tree(cart_id, uid, files)
        tar = tree.with_name(f"{uid}.tar")
        with tarfile.open(tar, "w") as opened:
            opened.add(tree, arcname=uid)
        for path in sorted(tree.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        tree.rmdir()
        self._link(tar)

    def _link(self, target: Path) -> None:
        links = self.volume / "cartuids"
        links.mkdir(exist_ok=True)
        link = links / target.name.removesuffix(".tar")
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / target.relative_to(self.volume))
