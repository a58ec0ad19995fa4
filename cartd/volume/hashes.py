"""What is staged, compared with its hashes: the bytes themselves, not only names and sizes."""

from __future__ import annotations

import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from twisted.internet.defer import CancelledError

from cartd.checksum import Checksum, Mismatch
from cartd.model import Cart, CartFile, Twin
from cartd.threads import RunsInThread, T
from cartd.volume.files import open_to_read
from cartd.volume.paths import VolumePaths

PIECE = 1 << 20
Stopped = Callable[[], bool]


class Declared(Protocol):
    """What is known of a file's bytes: their number, and lower-case hex of their hash."""

    @property
    def hash_type(self) -> str: ...

    @property
    def hash_sum(self) -> str: ...

    @property
    def size(self) -> int | None: ...


class Hashes:
    """The part of the volume that reads files to their ends."""

    _paths: VolumePaths
    _threads: RunsInThread

    async def has(self, cart: Cart, file: CartFile) -> bool:
        """Whether the file is there, under no other name, with the right size and hash.

        False if none is known.  What has several names may be another cart's as well, and be
        counted there.
        """

        def look(stopped: Stopped) -> bool:
            if _member_fault(self._paths, cart, file, stopped):
                return False
            return self._paths.member(cart, file.path).lstat().st_nlink == 1

        known = file.hash_sum and file.size is not None
        return bool(known) and await self._until_cancelled(look)

    async def faults(self, cart: Cart, files: Sequence[CartFile]) -> list[str]:
        """What is wrong with each file of an unbundled cart, in a few words; nothing is empty.

        Without a known hash, or size, that is not compared.
        """

        def look(stopped: Stopped) -> list[str]:
            return [_member_fault(self._paths, cart, file, stopped) for file in files]

        return await self._until_cancelled(look)

    async def tar_faults(self, cart: Cart, files: Sequence[CartFile]) -> list[str]:
        """The same of a bundled cart, whose files are in its tar."""
        return await self._until_cancelled(_faults_in_tar, self._paths.tar(cart), cart.uid, files)

    async def right(self, twins: Sequence[Twin]) -> list[Twin]:
        """Those of the staged files whose bytes still have their hash."""

        def look(stopped: Stopped) -> list[Twin]:
            return [twin for twin in twins if not _twin_fault(self._paths, twin, stopped)]

        return await self._until_cancelled(look)

    async def _until_cancelled(self, look: Callable[..., T], *args: Any) -> T:
        """Run ``look`` in a thread; it is told when nobody waits for it any more."""
        stopped = threading.Event()
        try:
            return await self._threads.run(look, *args, stopped.is_set)
        except CancelledError:
            stopped.set()
            raise


def file_fault(path: Path, file: Declared, stopped: Stopped) -> str:
    """What is wrong with the file at ``path``; empty if nothing is.  Blocks.

    A symbolic link is not followed.  ``stopped()`` ends it early, with any answer.
    """
    try:
        with open(path, "rb", buffering=0, opener=open_to_read) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                return "is not a regular file"
            size = status.st_size if file.size is None else file.size
            return _content_fault(opened, status.st_size, size, file, stopped)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _content_fault(
    content: IO[bytes] | Any, found: int, size: int, file: Declared, stopped: Stopped
) -> str:
    if found != size:
        return f"has {found} bytes where {size} were recorded"
    checksum = Checksum(file.hash_type, file.hash_sum, size)
    try:
        while not stopped() and (piece := content.read(PIECE)):
            checksum.update(piece)
        checksum.finish()
    except Mismatch:
        return "has other bytes than its hash tells"
    return ""


def _member_fault(paths: VolumePaths, cart: Cart, file: CartFile, stopped: Stopped) -> str:
    try:
        path = paths.member(cart, file.path)
    except ValueError:
        return "cannot have that path"
    return file_fault(path, file, stopped)


def _twin_fault(paths: VolumePaths, twin: Twin, stopped: Stopped) -> str:
    path = paths.staged(twin.staged_cart, twin.staged_uid, twin.staged_path)
    return file_fault(path, twin, stopped)


def _faults_in_tar(tar: Path, top: str, files: Sequence[CartFile], stopped: Stopped) -> list[str]:
    wanted = {f"{top}/{file.path}": file for file in files}
    found: dict[str, str] = {}
    missing = "is missing in the bundle"
    try:
        for member, content in _members(tar):
            if (file := wanted.get(member.name)) is not None:
                size = member.size if file.size is None else file.size
                found[member.name] = _content_fault(content, member.size, size, file, stopped)
    except FileNotFoundError:
        missing = "is lost with the bundle"
    except (OSError, ValueError, tarfile.TarError):
        missing = "cannot be read in the bundle"
    return [found.get(name, missing) for name in wanted]


def _members(tar: Path) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Each regular file of a tar with its content, to be read before the next one is taken."""
    with (
        open(tar, "rb", opener=open_to_read) as opened,
        tarfile.open(fileobj=opened, mode="r:") as reading,
    ):
        while (member := reading.next()) is not None:
            if member.isreg():
                yield member, reading.extractfile(member)
            reading.members.clear()  # type: ignore[attr-defined]  # it would keep them all
