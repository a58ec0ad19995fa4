"""One archive and one service for all tests of a file, each with uids of its own.

::

    @pytest.fixture(scope="module")
    def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
        with cart_site(tmp_path_factory.mktemp("site")) as running:
            yield running
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil

from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd
from tests.support.served_directory import ServedDirectory, served_directory

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class CartSite:
    """Archive and service; everything that they write is below ``root``."""

    root: Path
    cartd: RunningCartd
    archive: ServedDirectory
    _prefix: str = field(default_factory=lambda: f"id{next(_numbers)}-")

    @property
    def port(self) -> int:
        return self.cartd.port

    def manifest(self, files: Mapping[str, bytes], **more: object) -> bytes:
        """Put the files into the archive and list them."""
        entries = []
        for path, data in files.items():
            archive_id = f"{self._prefix}{next(_numbers)}"
            self.archive.put(archive_id, data)
            entries.append(entry(archive_id, path, data))
        return manifest(entries, **more)

    def stage(self, uid: str, files: Mapping[str, bytes], **more: object) -> None:
        """Post a cart of these files and wait until it is ready."""
        answer = self.cartd.post(uid, self.manifest(files, **more))
        assert answer.status == 201, answer
        self.cartd.wait_until(uid, "ready")

    def on_volume(self, uid: str) -> list[Path]:
        """The trees, and bundles, of all carts of that uid, oldest first."""
        names = {uid, f"{uid}.tar"}
        found = (path for path in self.cartd.volume.glob("[0-9]*/*") if path.name in names)
        return sorted(found, key=lambda path: int(path.parent.name))

    def rows(self, table: str) -> list[sqlite3.Row]:
        """All rows of a table of the store, in the order of their ids."""
        return self.query(f"SELECT * FROM {table} ORDER BY id")

    def query(self, sql: str, *parameters: object) -> list[sqlite3.Row]:
        """Query the store, whose file can be read while the service runs."""
        with closing(sqlite3.connect(self.cartd.directory / "cartd.sqlite3")) as database:
            database.row_factory = sqlite3.Row
            return database.execute(sql, parameters).fetchall()

    def process(self) -> psutil.Process:
        assert self.cartd.process is not None
        return psutil.Process(self.cartd.process.pid)

    def open_files(self, uid: str) -> list[str]:
        """Return the files of these carts that the service has open on the volume."""
        held = (Path(file.path) for file in self.process().open_files())
        trees = self.on_volume(uid)
        return [str(file) for file in held if any(file.is_relative_to(tree) for tree in trees)]


@contextmanager
def cart_site(
    directory: Path, *archive_options: str, ini: str = "", database: str = ""
) -> Iterator[CartSite]:
    """Start both; at the end the service must stop cleanly, with a clean log.

    ``database``: by default a SQLite file, which :meth:`CartSite.query` needs.
    """
    with (
        served_directory(directory, *archive_options) as archive,
        running_cartd(
            directory / "cartd", archive=archive.url, ini=ini, database=database
        ) as cartd,
    ):
        yield CartSite(directory, cartd, archive)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
