"""What is staged, compared with its hashes: the bytes themselves, not only names and sizes.

Strategy: the comparing is a generator that says after each piece how many bytes it has read.  A
thread runs it for a while, and whoever asked may rest before the next one does: a large file takes
no longer at a stretch than many small ones.
"""

from __future__ import annotations

import errno
import os
import sys
import tarfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from twisted.internet.defer import CancelledError

from cartd.checksum import Checksum, Mismatch
from cartd.disk_errors import raise_if_passing
from cartd.model import Cart, CartFile, DuplicateFile
from cartd.rooted_fs import Beneath
from cartd.threads import T, ThreadRunner
from cartd.volume.identity import Identity
from cartd.volume.paths import VolumePaths

PIECE = 1 << 20
TRIP = 64 * 2**20
"""Bytes that one trip to a thread reads."""
MOST_TOGETHER = 1000
"""Files that are looked at before what was found is told."""
Stopped = Callable[[], bool]
Look = Generator[int, None, T]
"""Gives numbers of bytes that were read, and returns what was found."""
Read = Callable[[int], Awaitable[None]]


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
    _identity: Identity
    _threads: ThreadRunner

    async def in_place(
        self, cart: Cart, files: Sequence[CartFile]
    ) -> AsyncIterator[list[CartFile]]:
        """Give those of the files that are there with the right size and hash, some at a time.

        What the system keeps of them in its memory is read from the disk again.  A file whose hash
        nobody knows is not among them: its size alone says nothing.  Nor is one of a bundled cart
        that has another name: nobody is linked to such a cart, so the bytes are counted elsewhere.
        """
        for some in _groups([file for file in files if file.hash_sum and file.size is not None]):
            faults = await self._looked(
                _tree_faults(self._paths, cart, some, unrecorded=True), _at_once
            )
            yield [file for file, fault in zip(some, faults, strict=True) if not fault]

    async def faults(self, cart: Cart, files: Sequence[CartFile], read: Read) -> list[str]:
        """What is wrong with each file of a ready cart, in a few words; nothing is empty.

        Without a known hash, or size, that is not compared.  ``read`` is told, now and then, how
        many bytes have been read since the last time, and waited for.
        """
        if cart.bundle:
            return await self._looked(_tar_faults(self._paths, cart, files), read)
        return await self._looked(_tree_faults(self._paths, cart, files), read)

    async def bundle_faults(
        self, cart: Cart, pages: AsyncIterator[list[CartFile]], read: Read
    ) -> AsyncIterator[tuple[list[CartFile], list[str]]]:
        """As :meth:`faults`, of the bundle of a ready cart: each page of its files, and its faults.

        A tar that cartd has written is in the manifest's order, and read along with the pages.  Of
        another one (Pacifica Cartd's), all files that are left are kept in memory.
        """
        walk = _TarWalk(self._paths, cart)
        async for files in pages:
            faults = await self._looked(walk.faults(files), read)
            if not walk.in_order:
                rest = [*files, *[file async for page in pages for file in page]]
                yield rest, await self.faults(cart, rest, read)
                return
            yield files, faults

    async def right(self, twins: Sequence[DuplicateFile]) -> list[DuplicateFile]:
        """Those of the staged files whose bytes still have their hash."""
        faults = await self._looked(_twin_faults(self._paths, twins), _at_once)
        return [twin for twin, fault in zip(twins, faults, strict=True) if not fault]

    async def _looked(self, look: Look[list[str]], read: Read) -> list[str]:
        stopped = threading.Event()
        busy = False
        try:
            while True:
                busy = True
                size, faults = await self._threads.run(self._step, look, stopped.is_set)
                busy = False
                await read(size)
                if faults is not None:
                    return faults
        except CancelledError:
            stopped.set()
            if not busy:
                self._threads.run(look.close)  # else the thread does that itself
            raise

    def _step(self, look: Look[list[str]], stopped: Stopped) -> tuple[int, list[str] | None]:
        """Read a trip's worth, in a thread; what was found, if that is the end."""
        done = 0
        try:
            while done < TRIP:
                done += next(look)
                if stopped():
                    look.close()
                    return done, None
        except StopIteration as ended:
            faults: list[str] = ended.value
            if any(faults):
                self._identity.check()
            return done, faults
        return done, None


async def _at_once(_size: int) -> None:
    """Nobody rests."""


def _groups(files: Sequence[CartFile]) -> Iterator[list[CartFile]]:
    """The files in lists that are worth a trip to a thread, and soon read."""
    some: list[CartFile] = []
    size = 0
    for file in files:
        some.append(file)
        size += file.size or 0
        if size >= TRIP or len(some) >= MOST_TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def _tree_faults(
    paths: VolumePaths, cart: Cart, files: Sequence[CartFile], *, unrecorded: bool = False
) -> Look[list[str]]:
    faults = []
    alone = unrecorded and cart.bundle
    with Beneath(paths.root) as below:
        for file in files:
            try:
                path = paths.member(cart, file.path)
            except ValueError:
                faults.append("cannot have that path")
                continue
            look = _file_fault(below, path, file, reread=unrecorded, alone=alone)
            faults.append((yield from look))
    return faults


def _twin_faults(paths: VolumePaths, twins: Sequence[DuplicateFile]) -> Look[list[str]]:
    faults = []
    with Beneath(paths.root) as below:
        for twin in twins:
            path = paths.staged(twin.staged_cart, twin.staged_uid, twin.staged_path)
            faults.append((yield from _file_fault(below, path, twin)))
    return faults


def _file_fault(
    below: Beneath, path: Path, file: Declared, *, reread: bool = False, alone: bool = False
) -> Look[str]:
    """What is wrong with the file at ``path``; empty if nothing is.

    :raises DiskUnavailable: nobody can tell now.

    A symbolic link is not followed.  ``reread``: from the disk, whatever the system remembers of
    it, where it can be told to.  ``alone``: it must have no other name.
    """
    try:
        with os.fdopen(below.open_file(path), "rb", buffering=0) as opened:
            if sys.platform != "win32" and sys.platform != "darwin" and reread:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            status = os.fstat(opened.fileno())
            if alone and status.st_nlink > 1:
                return "has another name"
            size = status.st_size if file.size is None else file.size
            return (yield from _content_fault(opened, status.st_size, size, file))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        raise_if_passing(error)
        if error.errno == errno.ENOTSUP:
            return "is not a regular file"
        return f"cannot be read: {error.strerror}"


def _content_fault(content: IO[bytes] | Any, found: int, size: int, file: Declared) -> Look[str]:
    if found != size:
        return f"has {found} bytes where {size} were recorded"
    checksum = Checksum(file.hash_type, file.hash_sum, size)
    try:
        while piece := content.read(PIECE):
            checksum.update(piece)
            yield len(piece)
        checksum.finish()
    except Mismatch:
        return "has other bytes than its hash tells"
    return ""


def _tar_faults(paths: VolumePaths, cart: Cart, files: Sequence[CartFile]) -> Look[list[str]]:
    wanted = {f"{cart.uid}/{file.path}": file for file in files}
    found: dict[str, str] = {}
    missing = "is missing in the bundle"
    try:
        for member, content in _members(paths.root, paths.tar(cart)):
            if (file := wanted.get(member.name)) is not None:
                size = member.size if file.size is None else file.size
                found[member.name] = yield from _content_fault(content, member.size, size, file)
    except FileNotFoundError:
        missing = "is lost with the bundle"
    except (OSError, ValueError, tarfile.TarError) as error:
        raise_if_passing(error)
        missing = "cannot be read in the bundle"
    return [found.get(name, missing) for name in wanted]


class _TarWalk:
    """The members of a bundle, compared with one page of the cart's files after the other."""

    def __init__(self, paths: VolumePaths, cart: Cart) -> None:
        self._uid = cart.uid
        self._members = _members_of(paths, cart)
        self._missing = "is missing in the bundle"
        self.in_order = True
        """Whether no member has come yet that is not of the page that was looked at."""

    def faults(self, files: Sequence[CartFile]) -> Look[list[str]]:
        wanted = {f"{self._uid}/{file.path}": file for file in files}
        found: dict[str, str] = {}
        try:
            while len(found) < len(wanted):
                member, content = next(self._members, (None, None))
                if member is None:
                    break
                file = wanted.get(member.name)
                if file is None or member.name in found:
                    self.in_order = False
                    break
                size = member.size if file.size is None else file.size
                found[member.name] = yield from _content_fault(content, member.size, size, file)
        except FileNotFoundError:
            self._missing = "is lost with the bundle"
        except (OSError, ValueError, tarfile.TarError) as error:
            raise_if_passing(error)
            self._missing = "cannot be read in the bundle"
        return [found.get(name, self._missing) for name in wanted]


def _members_of(paths: VolumePaths, cart: Cart) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Those of the cart's bundle; that it cannot have one is found out with the first."""
    yield from _members(paths.root, paths.tar(cart))


def _members(root: Path, tar: Path) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Each regular file of a tar with its content, to be read before the next one is taken."""
    with (
        Beneath(root) as below,
        os.fdopen(below.open_file(tar), "rb") as opened,
        tarfile.open(fileobj=opened, mode="r:") as reading,
    ):
        while (member := reading.next()) is not None:
            if member.isreg():
                yield member, reading.extractfile(member)
            reading.members.clear()  # type: ignore[attr-defined]  # it would keep them all
