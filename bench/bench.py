"""The environment of a comparison: its sizes, directories, data and servers."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from bench import peers
from bench.cartd import cartd
from bench.data import Data
from bench.nginx import nginx
from bench.pacifica import pacifica_archive
from bench.server import Server
from bench.trash import Trash

T = TypeVar("T")


class Bench:
    """The context of one comparison; its servers end with it."""

    def __init__(self, place: Path, *, quick: bool, rounds: int) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        self.quick = quick
        self.rounds = rounds
        self.data = Data(place / "archive", place / "sums")
        self.files = place / "files"
        """What nginx serves as static files."""
        self.scratch = place / "scratch"
        self._work = place / "work"
        self._trash = Trash(place / "trash")
        self._started = ExitStack()

    def __enter__(self) -> Bench:
        self._trash.move(self._work)
        self._work.mkdir()
        for path in (self.files, self.scratch):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._started.close()
        if error is None:
            self._trash.move(self._work)
            for path in (self.files, self.scratch):
                shutil.rmtree(path)

    def sized(self, full: T, quick: T) -> T:
        """Return the size to work with."""
        return quick if self.quick else full

    def fresh(self, name: str) -> Path:
        """Return the path of a directory that does not exist."""
        path = self._work / name
        self._trash.move(path)
        return path

    def peers(self) -> Path:
        """Return the directory of the peers' commands from PyPI; raises ``PeerUnavailable``."""
        return peers.environment(self.place)

    def nginx(self) -> Server:
        """Start the archive that is never the bottleneck, and the server of static files."""
        return self.started(
            nginx(self.place / "nginx", archive=self.data.archive, files=self.files)
        )

    def pacifica_archive(self) -> Server:
        """Start the real archive interface; raises ``PeerUnavailable``."""
        directory = self._work / "archive-interface"
        return self.started(pacifica_archive(directory, self.peers(), self.data.archive))

    def started(self, server: AbstractContextManager[Server]) -> Server:
        """Start a server that runs until the comparison ends."""
        return self._started.enter_context(server)

    def cartd(self, name: str, archive: Server) -> Server:
        """Start a cartd with an empty volume, until the comparison ends."""
        return self.started(cartd(self.fresh(name), archive.url))

    def directory(self, name: str) -> Path:
        """Return the directory of the service of that name."""
        return self._work / name
