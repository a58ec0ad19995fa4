"""A place for an incoming file, and a disk that fails under it."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cartd.checksum import Checksum
from cartd.threads import RunsInThread
from cartd.volume.directories import Directories
from cartd.volume.incoming import BLOCK, Incoming
from cartd.volume.partial import PartialFile

OLD = 1_234_567_890
SMALL = b"a body of less than a block"
LARGE = random.Random(1).randbytes(3 * BLOCK + 12_345)


@dataclass
class Place:
    """A directory that takes files, and what a test wants to know of it."""

    root: Path
    threads: RunsInThread
    shared: RunsInThread
    write: Callable[[int, memoryview], int] = os.write

    @property
    def final(self) -> Path:
        return self.root / "7" / "mine" / "a" / "b.dat"

    def incoming(
        self, body: bytes, *, digest: str | None = None, mtime: int | None = OLD
    ) -> Incoming:
        digest = hashlib.sha1(body).hexdigest() if digest is None else digest
        partial = PartialFile(
            self.root / "incoming" / "7" / "0-x",
            self.final,
            Directories(self.root),
            write=self.write,
        )
        checksum = Checksum("sha1", digest, len(body))
        return Incoming(partial, checksum, mtime, self.threads, self.shared)

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if not path.is_dir() or path.is_symlink()]


def fail_with(number: int, opened: list[int] | None = None) -> Callable[[int, memoryview], int]:
    """What a disk does that fails after half a block; ``opened`` gets the descriptor."""
    room = BLOCK // 2

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if opened is not None:
            opened.append(fd)
        if room == 0:
            raise OSError(number, os.strerror(number))
        written = os.write(fd, data[:room])
        room -= written
        return written

    return write


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
