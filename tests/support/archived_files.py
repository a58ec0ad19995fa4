"""Files of an archive, their manifest entries, and the expected members of a tar."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import IO

from tests.support.real_archive import RealArchive
from tests.support.running_cartd import manifest

HASH_TYPES = ("md5", "sha1", "sha256", "sha512")


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """One file, its time of change in Unix seconds, and its entry in a manifest."""

    archive_id: str | int
    path: str
    data: bytes
    mtime: float = 1_600_000_000.0
    hash_type: str = "sha1"

    @property
    def hash_sum(self) -> str:
        return hashlib.new(self.hash_type, self.data).hexdigest()

    @property
    def unpacked(self) -> tuple[bytes, int]:
        """The expected member of a tar: a time there has whole seconds."""
        return self.data, int(self.mtime // 1)

    def entry(self, **changed: object) -> Mapping[str, object]:
        return {
            "id": self.archive_id,
            "path": self.path,
            "hashtype": self.hash_type,
            "hashsum": self.hash_sum,
            **changed,
        }


def many_files(number: int, *, first_id: int = 1, seed: int = 0) -> list[ArchivedFile]:
    """Small files of many sizes, in directories, of all hash types, each with a time of its own."""
    random = Random(seed)
    return [
        ArchivedFile(
            first_id + n,
            f"run {n % 7}/part {n % 3}/{n:04}.dat",
            random.randbytes(random.choice((0, 1, 511, 512, 4096, 4097, 70_000))),
            1_500_000_000.25 + 1000 * n,
            HASH_TYPES[n % len(HASH_TYPES)],
        )
        for n in range(number)
    ]


def store(archive: RealArchive, files: Iterable[ArchivedFile]) -> None:
    for file in files:
        archive.hold(str(file.archive_id), file.data, file.mtime)


def manifest_of(files: Iterable[ArchivedFile], **more: object) -> bytes:
    return manifest((file.entry() for file in files), **more)


def in_tar(tar: IO[bytes]) -> dict[str, tuple[bytes, int]]:
    """The files of a tar with their bytes and times, by their paths below its top folder."""
    with tarfile.open(fileobj=tar, mode="r|") as opened:
        found = {}
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                found[member.name.partition("/")[2]] = content.read(), int(member.mtime)
        return found
