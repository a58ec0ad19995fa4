"""Verification of staged files: by size and time, or by reading all bytes and hashing them.

Strategy of hashing: a scan is a generator that yields the number of bytes after each chunk.  A
thread runs it for one step at a time, and the caller may pause between two steps: a large file
occupies a thread no longer at a time than many small ones.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tarfile
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from twisted.internet.defer import CancelledError

from cartd.checksum import Checksum, Mismatch
from cartd.deferreds.threads import T, ThreadRunner
from cartd.errors import raise_if_transient
from cartd.model import Cart, CartFile, CartFormat, DuplicateFile
from cartd.tar.bag import loaded_facts, new_hash
from cartd.volume.identity import VolumeIdentity
from cartd.volume.paths import VolumePaths
from cartd.volume.rooted_fs import RootedFS

BATCH = 1000
"""Files whose sizes and times are read in one call in a thread."""
CHUNK = 1 << 20
BYTES_PER_STEP = 64 * 2**20
"""Bytes that are read in one call in a thread."""
MAX_BATCH_FILES = 1000
"""Files that are verified before the results are returned."""
ShouldStop = Callable[[], bool]
Scan = Generator[int, None, T]
"""Yields numbers of bytes that were read, and returns the result."""
Throttle = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the file system or a tar's header says of a file of a cart."""

    position: int
    """The file's position in the cart."""
    size: int
    mtime: int
    """Whole Unix seconds."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of reading a file."""

    fault: str
    """What is wrong with it, in a few words; empty if nothing is."""
    also_sum: str | None = None
    """The second hash of an intact file that has the type of one."""


class Declared(Protocol):
    """The declared size of a file, and its hashes in lower-case hex."""

    @property
    def hash_type(self) -> str: ...

    @property
    def hash_sum(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def also_hash_type(self) -> str | None: ...

    @property
    def also_hash_sum(self) -> str | None: ...


class FileVerifier:
    """Verifies which files of carts are on the volume, by names and sizes or by their hashes."""

    def __init__(self, paths: VolumePaths, identity: VolumeIdentity, threads: ThreadRunner) -> None:
        self._paths = paths
        self._identity = identity
        self._threads = threads

    async def stat_files(self, cart: Cart, files: Iterable[CartFile]) -> list[FileFacts | None]:
        """Return the facts of each file, in order; None for a missing one."""
        found: list[FileFacts | None] = []
        left = iter(files)
        while batch := list(islice(left, BATCH)):
            found += await self._threads.run(self._stat_files, cart, batch)
        return found

    async def intact_files(
        self, cart: Cart, files: Sequence[CartFile], also_hash: str | None = None
    ) -> AsyncIterator[list[CartFile]]:
        """Yield those of the files that exist with the right size and hash, batch by batch.

        Each has its second hash, if it has one recorded or ``also_hash`` is the type of one.
        They are read from the disk, not from the page cache.  A file without a known hash is not
        yielded: its size alone proves nothing.  Nor is a file of a bundled cart with a second hard
        link: no cart is linked to a bundled one, so its bytes are accounted to another cart.
        """
        for batch in _batches([file for file in files if file.hash_sum and file.size is not None]):
            wanted = [
                replace(file, also_hash_type=file.second_hash_type(also_hash), also_hash_sum=None)
                for file in batch
            ]
            scan = _tree_verdicts(self._paths, cart, wanted, unrecorded=True)
            verdicts = await self._run_scan(scan, _no_throttle)
            yield [
                replace(file, also_hash_sum=verdict.also_sum)
                for file, verdict in zip(wanted, verdicts, strict=True)
                if not verdict.fault
            ]

    async def faults(self, cart: Cart, files: Sequence[CartFile], throttle: Throttle) -> list[str]:
        """Return what is wrong with each file of a ready cart, in a few words; '' if nothing.

        A hash or size that is not known is not compared.  ``throttle`` is awaited after each step,
        with the bytes read since the last call.
        """
        scan = _tar_verdicts if cart.has_tar else _tree_verdicts
        verdicts = await self._run_scan(scan(self._paths, cart, files), throttle)
        return [verdict.fault for verdict in verdicts]

    async def bundle_faults(
        self, cart: Cart, pages: AsyncIterator[list[CartFile]], throttle: Throttle
    ) -> AsyncIterator[tuple[list[CartFile], list[str]]]:
        """As :meth:`faults`, for the bundle of a ready cart: yield each page with its faults.

        A tar that cartd has written is in the order of the manifest, and read page by page.  For
        another one (Pacifica Cartd's), all remaining files are held in memory.
        """
        walk = _TarWalk(self._paths, cart)
        async for files in pages:
            verdicts = await self._run_scan(walk.verdicts(files), throttle)
            if not walk.in_order:
                rest = [*files, *[file async for page in pages for file in page]]
                yield rest, await self.faults(cart, rest, throttle)
                return
            yield files, [verdict.fault for verdict in verdicts]

    async def intact_duplicates(
        self, duplicates: Sequence[DuplicateFile], also_hash: str | None = None
    ) -> list[DuplicateFile]:
        """Return those of the staged files whose bytes still match their hash.

        Each gets the second hash that it lacks; see :meth:`DuplicateFile.missing_hash_type`.
        """
        wanted = [
            replace(duplicate, also_hash_type=missing, also_hash_sum=None)
            if (missing := duplicate.missing_hash_type(also_hash))
            else duplicate
            for duplicate in duplicates
        ]
        verdicts = await self._run_scan(_duplicate_verdicts(self._paths, wanted), _no_throttle)
        return [
            replace(duplicate, also_hash_sum=verdict.also_sum)
            for duplicate, verdict in zip(wanted, verdicts, strict=True)
            if not verdict.fault
        ]

    async def _run_scan(self, scan: Scan[list[Verdict]], throttle: Throttle) -> list[Verdict]:
        should_stop = threading.Event()
        busy = False
        try:
            while True:
                busy = True
                size, verdicts = await self._threads.run(self._step, scan, should_stop.is_set)
                busy = False
                await throttle(size)
                if verdicts is not None:
                    return verdicts
        except CancelledError:
            should_stop.set()
            if not busy:
                self._threads.run(scan.close)  # else the thread closes it
            raise

    def _stat_files(self, cart: Cart, batch: list[CartFile]) -> list[FileFacts | None]:
        paths: list[Path | None] = []
        for file in batch:
            try:
                paths.append(self._paths.member(cart, file.path))
            except ValueError:
                paths.append(None)
        found = stat_files(self._paths.root, paths)
        if None in found:
            self._identity.check()
        return [
            None if one is None else FileFacts(file.position, one.st_size, int(one.st_mtime // 1))
            for file, one in zip(batch, found, strict=True)
        ]

    def _step(
        self, scan: Scan[list[Verdict]], should_stop: ShouldStop
    ) -> tuple[int, list[Verdict] | None]:
        """Run one step, in a thread; return the bytes read, and the result at the end."""
        done = 0
        try:
            while done < BYTES_PER_STEP:
                done += next(scan)
                if should_stop():
                    scan.close()
                    return done, None
        except StopIteration as ended:
            verdicts: list[Verdict] = ended.value
            if any(verdict.fault for verdict in verdicts):
                self._identity.check()
            return done, verdicts
        return done, None


def stat_files(root: Path, paths: Sequence[Path | None]) -> list[os.stat_result | None]:
    """Return the status of each file, links not followed; None if it is not a regular one."""
    with RootedFS(root) as fs:
        return [None if path is None else _stat_file(fs, path) for path in paths]


def stat_file(root: Path, path: Path) -> os.stat_result | None:
    """As :func:`stat_files`, for one file."""
    with RootedFS(root) as fs:
        return _stat_file(fs, path)


def _stat_file(fs: RootedFS, path: Path) -> os.stat_result | None:
    try:
        status = fs.lstat(path)
    except (OSError, ValueError) as error:
        raise_if_transient(error)
        return None
    return status if stat.S_ISREG(status.st_mode) else None


async def _no_throttle(_size: int) -> None:
    """Do not pause."""


def _batches(files: Sequence[CartFile]) -> Iterator[list[CartFile]]:
    """Yield the files in batches that are worth a call in a thread and are read quickly."""
    batch: list[CartFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.size or 0
        if size >= BYTES_PER_STEP or len(batch) >= MAX_BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tree_verdicts(
    paths: VolumePaths, cart: Cart, files: Sequence[CartFile], *, unrecorded: bool = False
) -> Scan[list[Verdict]]:
    verdicts = []
    only_name = unrecorded and cart.bundle
    with RootedFS(paths.root) as fs:
        for file in files:
            try:
                path = paths.member(cart, file.path)
            except ValueError:
                verdicts.append(Verdict("cannot have that path"))
                continue
            scan = _verify_file(fs, path, file, drop_cache=unrecorded, only_name=only_name)
            verdicts.append((yield from scan))
    return verdicts


def _duplicate_verdicts(
    paths: VolumePaths, duplicates: Sequence[DuplicateFile]
) -> Scan[list[Verdict]]:
    verdicts = []
    with RootedFS(paths.root) as fs:
        for duplicate in duplicates:
            path = paths.staged(duplicate.staged_cart, duplicate.staged_uid, duplicate.staged_path)
            verdicts.append((yield from _verify_file(fs, path, duplicate)))
    return verdicts


def _verify_file(
    fs: RootedFS, path: Path, file: Declared, *, drop_cache: bool = False, only_name: bool = False
) -> Scan[Verdict]:
    """Read and verify the file at ``path``.

    :raises DiskUnavailable: it cannot be verified now.

    A symbolic link is not followed.  ``drop_cache``: read from the disk, not from the page cache,
    where the system supports that.  ``only_name``: it must have no other hard link.
    """
    try:
        with os.fdopen(fs.open_file(path), "rb", buffering=0) as opened:
            if sys.platform != "win32" and sys.platform != "darwin" and drop_cache:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            status = os.fstat(opened.fileno())
            if only_name and status.st_nlink > 1:
                return Verdict("has another hard link")
            size = status.st_size if file.size is None else file.size
            return (yield from _verify_content(opened, status.st_size, size, file))
    except FileNotFoundError:
        return Verdict("is missing")
    except OSError as error:
        raise_if_transient(error)
        if error.errno == errno.ENOTSUP:
            return Verdict("is not a regular file")
        return Verdict(f"cannot be read: {error.strerror}")


def _verify_content(
    content: IO[bytes] | Any, found: int, size: int, file: Declared
) -> Scan[Verdict]:
    if found != size:
        return Verdict(f"has {found} bytes where {size} were recorded")
    checksum = Checksum(file.hash_type, file.hash_sum, size, file.also_hash_type)
    try:
        while chunk := content.read(CHUNK):
            checksum.update(chunk)
            yield len(chunk)
        checksum.finish()
    except Mismatch:
        return Verdict("does not match its hash")
    also_sum = checksum.also_sum()
    if file.also_hash_sum is not None and also_sum != file.also_hash_sum:
        return Verdict("does not match its second hash")
    return Verdict("", also_sum)


def _tar_verdicts(paths: VolumePaths, cart: Cart, files: Sequence[CartFile]) -> Scan[list[Verdict]]:
    wanted = {f"{cart.tar_prefix}{file.path}": file for file in files}
    found: dict[str, Verdict] = {}
    missing = "is missing from the bundle"
    try:
        for member, content in _members(paths.root, paths.tar(cart)):
            if (file := wanted.get(member.name)) is not None:
                size = member.size if file.size is None else file.size
                found[member.name] = yield from _verify_content(content, member.size, size, file)
    except FileNotFoundError:
        missing = "is missing: its bundle does not exist"
    except (OSError, ValueError, tarfile.TarError) as error:
        raise_if_transient(error)
        missing = "cannot be read in the bundle"
    return [found.get(name) or Verdict(missing) for name in wanted]


class _TarWalk:
    """Verifies the members of a bundle against the cart's files, page by page."""

    def __init__(self, paths: VolumePaths, cart: Cart) -> None:
        self._prefix = cart.tar_prefix
        self._tags = _TagFiles(cart)
        self._members = _members_of(paths, cart)
        self._missing = "is missing from the bundle"
        self.in_order = True
        """Whether all members so far were in the page that was being verified."""

    def verdicts(self, files: Sequence[CartFile]) -> Scan[list[Verdict]]:
        wanted = {f"{self._prefix}{file.path}": file for file in files}
        found: dict[str, Verdict] = {}
        try:
            while len(found) < len(wanted):
                member, content = next(self._members, (None, None))
                if member is None:
                    break
                if not member.name.startswith(self._prefix):
                    yield from self._tags.read(member, content)
                    continue
                file = wanted.get(member.name)
                if file is None or member.name in found:
                    self.in_order = False
                    break
                size = member.size if file.size is None else file.size
                found[member.name] = yield from _verify_content(content, member.size, size, file)
        except FileNotFoundError:
            self._missing = "is missing: its bundle does not exist"
        except (OSError, ValueError, tarfile.TarError) as error:
            raise_if_transient(error)
            self._missing = "cannot be read in the bundle"
        verdicts = [found.get(name) or Verdict(self._missing) for name in wanted]
        if self._tags.are_damaged and verdicts and not verdicts[0].fault:
            verdicts[0] = Verdict("is in a bag whose own files are damaged")
        return verdicts


class _TagFiles:
    """Verifies the files of a bag that are none of the cart's against its tag manifest.

    These are in the order of the tag manifest, which is the last of them.
    """

    def __init__(self, cart: Cart) -> None:
        self._facts = loaded_facts(cart.bag) if cart.format is CartFormat.BAG else None
        self._lines = b""
        self.are_damaged = self._facts is not None
        """Until the tag manifest has been read, which precedes the files of the cart."""

    def read(self, member: tarfile.TarInfo, content: Any) -> Scan[None]:
        """Read the next one; ``content`` is that of ``member``."""
        if self._facts is None:
            return
        name = member.name.rpartition("/")[2]
        if name == f"tagmanifest-{self._facts.algorithm}.txt":
            self.are_damaged = content.read(len(self._lines) + 1) != self._lines
            return
        computing = new_hash(self._facts.algorithm)
        while chunk := content.read(CHUNK):
            computing.update(chunk)
            yield len(chunk)
        self._lines += f"{computing.hexdigest()}  {name}\n".encode()


def _members_of(paths: VolumePaths, cart: Cart) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Yield the members of the cart's bundle; ``ValueError`` at the first if it cannot have one."""
    yield from _members(paths.root, paths.tar(cart))


def _members(root: Path, tar: Path) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Yield each regular file of a tar with its content, to be read before the next one."""
    with (
        RootedFS(root) as fs,
        os.fdopen(fs.open_file(tar), "rb") as opened,
        tarfile.open(fileobj=opened, mode="r:") as reading,
    ):
        while (member := reading.next()) is not None:
            if member.isreg():
                yield member, reading.extractfile(member)
            reading.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
