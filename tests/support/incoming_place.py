"""A directory for incoming files, and a disk that fails."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from pathlib import Path

from cartd.checksum import Checksum
from cartd.deferreds.threads import ThreadRunner
from cartd.volume.incoming import BLOCK, IncomingFile, PartialFile
from cartd.volume.rooted_fs import MkdirFS

OLD = 1_234_567_890
SMALL = b"a body of less than a block"
LARGE = random.Random(1).randbytes(3 * BLOCK + 12_345)


@dataclass
class Place:
    """A directory for incoming files, and queries on it."""

    root: Path
    threads: ThreadRunner
    shared: ThreadRunner

    @property
    def final(self) -> Path:
        return self.root / "7" / "mine" / "a" / "b.dat"

    def incoming(
        self, body: bytes, *, digest: str | None = None, mtime: int | None = OLD
    ) -> IncomingFile:
        digest = hashlib.sha1(body).hexdigest() if digest is None else digest
        temporary = self.root / "incoming" / "7" / "0-x"
        partial = PartialFile(temporary, self.final, MkdirFS(self.root))
        checksum = Checksum("sha1", digest, len(body))
        return IncomingFile(partial, checksum, mtime, self.threads, self.shared)

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if not path.is_dir() or path.is_symlink()]


class FailingWrites:
    """``os.write`` to a disk that fails after half a block."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._remaining = BLOCK // 2
        self._write = os.write

    def __call__(self, fd: int, data: bytes | memoryview) -> int:
        if not isinstance(data, memoryview):  # the reactor wakes itself
            return self._write(fd, data)
        if self._remaining == 0:
            raise OSError(self._number, os.strerror(self._number))
        written = self._write(fd, data[: self._remaining])
        self._remaining -= written
        return written
