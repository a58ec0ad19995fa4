"""The files of the archive, and the manifests that list them.

They are created once and kept.  Small files are named by their number in five digits.  For a longer
number, the nginx archive returns the file of its last five digits, so that a million ids need no
million files.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIB = 2**10
MIB = 2**20
SMALL_SIZE = 4 * KIB
MOST_SMALL = 100_000
WARM = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a cart."""

    id: str
    path: str
    sha1: str


@dataclass(frozen=True, slots=True)
class CartData:
    """The files of one cart."""

    entries: tuple[Entry, ...]
    total_bytes: int

    @property
    def manifest(self) -> bytes:
        entries = ",".join(
            f'{{"id":{json.dumps(entry.id)},"path":{json.dumps(entry.path)},'
            f'"hashtype":"sha1","hashsum":"{entry.sha1}"}}'
            for entry in self.entries
        )
        return f'{{"fileids":[{entries}]}}'.encode()


class Data:
    """The archive's directory; ``sums`` holds the hash sums of its files."""

    def __init__(self, archive: Path, sums: Path) -> None:
        self.archive = archive
        self._sums = sums
        archive.mkdir(parents=True, exist_ok=True)
        sums.mkdir(parents=True, exist_ok=True)

    def small(self, count: int) -> CartData:
        """Return ``count`` files of 4 KiB, 1,000 per directory, all different below 100,000."""
        sums = self._small_sums(min(count, MOST_SMALL))
        entries = tuple(
            Entry(
                f"{number:05d}",
                f"run{number // 1000:04d}/sample{number:07d}.dat",
                sums[number % MOST_SMALL],
            )
            for number in range(count)
        )
        return CartData(entries, count * SMALL_SIZE)

    def big(self, size: int, count: int = 4, *, first: int = 0) -> CartData:
        """Return a cart of ``count`` files of ``size`` bytes, numbered from ``first``."""
        numbers = range(first, first + count)
        return CartData(tuple(self._big(size, number) for number in numbers), size * count)

    def warm(self) -> CartData:
        """Return a cart of a few files that no other cart has, to warm up a server."""
        entries = []
        for number in range(WARM):
            content = b"warm" * (number + 1)
            path = self.archive / f"warm-{number}"
            path.write_bytes(content)
            entries.append(Entry(path.name, path.name, hashlib.sha1(content).hexdigest()))
        return CartData(tuple(entries), sum(len(b"warm") * (n + 1) for n in range(WARM)))

    def _small_sums(self, count: int) -> list[str]:
        known = self._sums / "small"
        sums = known.read_text().split() if known.exists() else []
        for number in range(len(sums), count):
            content = hashlib.shake_128(b"%d" % number).digest(SMALL_SIZE)
            (self.archive / f"{number:05d}").write_bytes(content)
            sums.append(hashlib.sha1(content).hexdigest())
        known.write_text("\n".join(sums))
        return sums

    def _big(self, size: int, number: int) -> Entry:
        name = f"big-{size}-{number}.raw"
        known = self._sums / name
        if not known.exists():
            digest = hashlib.sha1()
            with (self.archive / name).open("wb") as file:
                for block in _blocks(size, number):
                    file.write(block)
                    digest.update(block)
            known.write_text(digest.hexdigest())
        return Entry(name, f"scans/{name}", known.read_text())


def _blocks(size: int, seed: int) -> Iterator[bytes]:
    source = random.Random(seed)
    while size > 0:
        yield source.randbytes(min(size, MIB))
        size -= MIB
