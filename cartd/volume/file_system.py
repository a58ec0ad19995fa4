"""The volume's file system: what it must be able to do, which names it takes for one, and its sync.

Strategy of name collisions, different paths of a manifest that are the same file on this volume:
some file systems do not distinguish ``data`` from ``DATA`` (by default NTFS, exFAT, APFS and
others), or composed from decomposed characters (HFS+, and ZFS if configured so).  There, one file
of a cart would replace another.  Whether the volume folds names is detected with trial files.  If
it does, the paths of a cart are compared after folding, which finds too many pairs rather than too
few; each pair is then tested with trial files on the volume.

The functions and :class:`FileSystem` block: for the start, the commands, and threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import CartdError, ConfigError, NoSpace, VolumeNotWritable
from cartd.model import CartFile
from cartd.volume.identity import VolumeIdentity
from cartd.volume.incoming import TRIAL, PartialFile, remove_leftovers, trial_file
from cartd.volume.paths import NAME_MAX, VolumePaths
from cartd.volume.remove import remove_tree
from cartd.volume.rooted_fs import CREATE_FLAGS, DISK_FULL, MkdirFS, RootedFS

_EXPLANATION = "cartd knows this directory by that number, which its database has too."
_REFUSED_ERRNOS = frozenset({errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
"""Read-only, as after disk errors; I/O error; permissions lost, or immutable."""
MAX_CANDIDATES: Final = 20
"""Paths compared of those with the same folded name."""
Pair = tuple[str, str]
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BLOCK_DEVICES = Path("/sys/dev/block")
_MOUNTED = tuple(Path("/sys/fs", kind) for kind in ("ext4", "xfs", "f2fs"))
"""Where these file systems have a directory for each device that is mounted."""

log = Logger()


def prepare(paths: VolumePaths) -> list[str]:
    """Create the fixed directories and test what staging does: write, sync, rename over a name.

    Return the limitations of the volume that do not prevent its use, one line each.  Raise
    :class:`ConfigError` with the path and the reason.  The parent of the volume is not created:
    where a disk is not mounted, nothing must be written to its mount point.
    """
    for directory, mode in ((paths.root, 0o777), (paths.links, 0o777), (paths.all_incoming, 0o700)):
        try:
            directory.mkdir(mode, exist_ok=True)
            if directory != paths.root and directory.is_symlink():
                raise unusable(directory, "it is a symbolic link")
        except FileExistsError:
            raise unusable(directory, "it is not a directory") from None
        except FileNotFoundError:
            raise unusable(directory, "the directory above it does not exist") from None
        except OSError as error:
            raise unusable(directory, error.strerror or str(error)) from None
    try:
        remove_leftovers(paths)
        _test_write(paths)
        return [*_limitations(paths)]
    except NoSpace:
        # A full volume does not prevent the start: eviction will free space.
        return []
    except OSError as error:
        if error.errno in DISK_FULL:
            return []
        raise unusable(paths.root, error.strerror or str(error)) from None


def write_volume_number(root: Path, number: int) -> None:
    """Write the number of the volume at ``root``, which has been prepared, durably.

    Raises :class:`~cartd.errors.NoSpace` or ``OSError``.
    """
    paths = VolumePaths(root)
    with trial_file(paths, paths.identity.name) as temporary:
        partial = PartialFile(temporary, paths.identity, MkdirFS(root))
        try:
            partial.append(f"{number}\n{_EXPLANATION}\n".encode())
            partial.chown_to_owner_of(root)
            partial.commit(durable=True)
        finally:
            partial.discard()


def check_reserve(root: Path, reserve: int) -> None:
    """Raise :class:`ConfigError` if no cart could ever be staged on this volume."""
    total = shutil.disk_usage(root).total
    if reserve >= total:
        raise ConfigError(
            f"volume_reserve: {reserve:,} bytes are to stay free on the file system of"
            f" {str(root)!r}, which has {total:,} in all: no cart could be staged; set it lower"
        )


def check_writable(paths: VolumePaths) -> None:
    """Raise :class:`VolumeNotWritable` if the file system or its disk rejects writes.

    A full disk and errors of this process alone do not count.
    """
    try:
        _test_write(paths)
    except NoSpace:
        pass
    except OSError as error:
        if error.errno in _REFUSED_ERRNOS:
            raise VolumeNotWritable(error.strerror or str(error)) from error


def _test_write(paths: VolumePaths) -> None:
    with trial_file(paths, TRIAL) as temporary:
        _replace_a_file(paths, temporary)


def _replace_a_file(paths: VolumePaths, temporary: Path) -> None:
    final = paths.root / temporary.name
    try:
        for content in (b"cartd", b"another"):
            trial = PartialFile(temporary, final, MkdirFS(paths.root))
            try:
                trial.append(content)
                trial.sync()
                trial.commit()
            finally:
                trial.discard()
        with RootedFS(paths.root) as fs:
            if fs.lstat(final).st_size != len(b"another"):
                raise OSError(errno.EIO, "a rename did not replace the file at its target")
    finally:
        with RootedFS(paths.root) as fs:
            fs.unlink(final)


def _limitations(paths: VolumePaths) -> Iterator[str]:
    if folding := detect_folding(paths):
        yield (
            f"The volume does not distinguish {folding}: a cart with two paths that are the same"
            " there ends in error, and only one of two such uids has a link in cartuids/"
        )
    with trial_directory(paths) as (fs, directory):
        first = directory / "file"
        os.close(fs.open(first, CREATE_FLAGS))
        try:
            with fs.entry(first) as (name, dir_fd):
                os.link(name, "link", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except (OSError, NotImplementedError) as error:
            yield (
                f"The volume has no hard links ({error}): a file of several carts is fetched and"
                " stored once for each of them"
            )
        if (longest := _longest_name(fs, directory)) < NAME_MAX:
            yield (
                f"The volume allows names of up to {longest} bytes: a cart with a longer one"
                " ends in error"
            )


def _longest_name(fs: RootedFS, directory: Path) -> int:
    """Return the length in bytes of the longest possible name, by binary search."""
    fits, fails = 1, NAME_MAX + 1
    length = NAME_MAX
    while fails - fits > 1:
        path = directory / ("n" * length)
        try:
            os.close(fs.open(path, CREATE_FLAGS))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise NoSpace from error
            fails = length
        else:
            fs.unlink(path)
            fits = length
        length = (fits + fails) // 2
    return fits


def unusable(path: Path, reason: str) -> ConfigError:
    """Return the error for a path that cannot be used as part of the volume."""
    return ConfigError(f"volume_path: {str(path)!r} cannot be used: {reason}")


@dataclass(frozen=True, slots=True)
class Folding:
    """What the volume does not distinguish; false if it distinguishes all names."""

    case: bool = False
    """Upper and lower case."""
    normal_form: bool = False
    """A character that Unicode has composed and decomposed (UAX #15)."""

    def __bool__(self) -> bool:
        return self.case or self.normal_form

    def __str__(self) -> str:
        what = ["upper and lower case"] * self.case
        what += ["composed and decomposed characters"] * self.normal_form
        return ", or ".join(what)

    def key(self, path: str) -> str:
        """Return the folded path: equal for all paths that may be the same file."""
        if path.isascii():
            return path.lower() if self.case else path
        if self.normal_form:
            path = unicodedata.normalize("NFD", path)
        if self.case:
            # Some systems fold to upper case, others to lower case.
            path = path.upper().casefold()
        return unicodedata.normalize("NFD", path) if self.normal_form else path


class NameCollisions:
    """Finds collisions of the paths of a cart on this volume."""

    def __init__(self, paths: VolumePaths, identity: VolumeIdentity, threads: ThreadRunner) -> None:
        self._paths = paths
        self._identity = identity
        self._threads = threads
        self._folding: Folding | None = None

    def folds(self) -> bool:
        """Whether the volume treats some names as the same, as far as that has been detected."""
        return bool(self._folding)

    async def folding(self) -> Folding:
        """Return which names the volume treats as the same; detected once, with trial files."""
        if self._folding is None:
            try:
                self._folding = await self._threads.run(self._detect_folding)
            except OSError as error:
                log.warn("Cannot detect whether the volume folds names: {error}", error=error)
                return Folding()
        return self._folding

    async def find(
        self, pages: Callable[[], AsyncIterator[Sequence[CartFile]]]
    ) -> tuple[str, str] | None:
        """Return the first two paths of a cart that are the same file on this volume.

        ``pages`` returns an iterator over the cart's files.
        """
        folding = await self.folding()
        if not folding:
            return None
        folded = CollisionFinder(folding)
        for step in (folded.scan, folded.collect):
            async for page in pages():
                await uncancellable(self._threads.run(step, [file.path for file in page]))
        return await self._threads.run(find_collision, self._paths, folded)

    def _detect_folding(self) -> Folding:
        self._identity.check()
        return detect_folding(self._paths)


class CollisionFinder:
    """Finds the paths of a cart that may collide, or of which one is a file above another.

    All paths must be passed twice: first to :meth:`scan`, then to :meth:`collect`.
    """

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        # Hashes instead of texts: there may be a million paths.
        self._files: set[int] = set()
        self._directories: set[int] = set()
        self._colliding_keys: set[str] = set()
        self._candidates: dict[str, list[tuple[str, bool]]] = {}

    def scan(self, paths: Iterable[str]) -> None:
        files, directories = self._files, self._directories
        for path in paths:
            key = self._folding.key(path)
            number = hash(key)
            if number in files or number in directories:
                self._colliding_keys.add(key)
            files.add(number)
            for parent in _parents(key):
                number = hash(parent)
                if number in directories:
                    break  # and so are those above it
                directories.add(number)
                if number in files:
                    self._colliding_keys.add(parent)

    def collect(self, paths: Iterable[str]) -> None:
        if not self._colliding_keys:
            return
        for path in paths:
            key = self._folding.key(path)
            for place in (key, *_parents(key)):
                if place in self._colliding_keys:
                    candidates = self._candidates.setdefault(place, [])
                    if len(candidates) < MAX_CANDIDATES:
                        candidates.append((path, place == key))

    def pairs(self) -> Iterator[Pair]:
        """Yield pairs with the same folded name, of which at least one is a file."""
        for candidates in self._candidates.values():
            for (first, is_file), (second, is_file_too) in combinations(candidates, 2):
                if is_file or is_file_too:
                    yield first, second


def _parents(key: str) -> Iterator[str]:
    """Yield the parent directories, the nearest first."""
    while (end := key.rfind("/")) > 0:
        key = key[:end]
        yield key


def detect_folding(paths: VolumePaths) -> Folding:
    """Detect what this volume does not distinguish.  Raises ``OSError``."""
    with trial_directory(paths) as (fs, directory):
        return Folding(
            case=_is_same_name(fs, directory, "a", "A"),
            normal_form=_is_same_name(fs, directory, "\u00e9", "e\u0301"),
        )


def first_same_path(paths: VolumePaths, pairs: Iterable[Pair]) -> Pair | None:
    """Return the first two paths that are the same file on this volume.  Raises ``OSError``."""
    known: dict[Pair, bool] = {}
    with trial_directory(paths) as (fs, directory):
        for first, second in pairs:
            for names in zip(first.split("/"), second.split("/"), strict=False):
                if names[0] != names[1] and names not in known:
                    known[names] = _is_same_name(fs, directory, *names)
                if names[0] != names[1] and not known[names]:
                    break
            else:
                return first, second
    return None


@contextmanager
def trial_directory(paths: VolumePaths) -> Iterator[tuple[RootedFS, Path]]:
    """Yield a temporary directory for trial files."""
    with trial_file(paths, TRIAL) as path, RootedFS(paths.root) as fs:
        fs.mkdir(path)
        try:
            yield fs, path
        finally:
            with suppress(OSError):  # the next start removes it
                remove_tree(fs, path)


def _is_same_name(fs: RootedFS, directory: Path, first: str, second: str) -> bool:
    try:
        os.close(fs.open(directory / first, CREATE_FLAGS))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return False  # the volume does not allow that name at all
    try:
        return fs.exists(directory / second)
    finally:
        fs.unlink(directory / first)


def find_collision(paths: VolumePaths, folded: CollisionFinder) -> Pair | None:
    """Return the first two of the collected paths that are the same file on this volume."""
    pairs: Sequence[Pair] = [*folded.pairs()]
    return first_same_path(paths, pairs) if pairs else None


class SyncFailed(CartdError):
    """The system could not write all dirty pages to the disk: some may be lost."""


class FileSystem:
    """The file system that the volume is on.

    On Linux only this file system is synced: data, names and directories of all processes
    (syncfs(2), which reports write errors since 5.8).  Other systems sync every disk and report
    no errors; Windows has no such call, and nothing is done there.
    """

    page_cache: str | None = None
    """The result of :func:`page_cache_id` when it was opened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd: int | None = None
        self._sync: Callable[[], None] = _sync_all
        self._syncfs: Callable[[int], int] | None = None
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            if hasattr(libc, "syncfs"):
                self._syncfs = libc.syncfs
                self._sync = self._sync_volume

    def open(self) -> None:
        """Open it: from now on, the next sync reports every write error, later ones do not."""
        if sys.platform != "win32":
            self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.page_cache = page_cache_id(os.fstat(self._fd).st_dev)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def sync(self) -> None:
        """Return when all earlier writes are on the disk.

        :raises SyncFailed: some are not, and a retry would not report it.
        """
        self._sync()

    def _sync_volume(self) -> None:
        if self._fd is None:
            raise SyncFailed("The volume's file system is not synced: it is closed")
        self._check_mount(self._fd)
        assert self._syncfs is not None
        if self._syncfs(self._fd) != 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):
                _sync_all()  # a sandbox that knows only the older call
                return
            raise SyncFailed(f"The volume's file system cannot be synced: {_reason(number)}")

    def _check_mount(self, before: int) -> None:
        """Raise :class:`SyncFailed`, and reopen, if another file system is mounted there now."""
        try:
            device = self._root.stat().st_dev
            if device == os.fstat(before).st_dev and page_cache_id(device) == self.page_cache:
                return
            self.open()
        except OSError as error:
            raise SyncFailed(f"The volume cannot be read: {error.strerror}") from error
        os.close(before)
        raise SyncFailed("The volume's file system has been remounted since the last sync")


def page_cache_id(device: int) -> str | None:
    """Return an id of the page cache that holds the writes to a file system.

    It changes with a boot of the machine and with a remount of the file system, after which
    unwritten pages may be lost.  A killed process or a restarted container does not change it.
    None where it cannot be determined.

    ``device`` is ``st_dev`` of the file system.  That is the same after each mount, so the boot id
    is not enough; the inode number of its directory in sysfs is never reused, and is new for each
    mount.
    """
    if sys.platform == "win32":
        return None
    try:
        boot = BOOT_ID.read_text().strip()
        name = (_BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}").readlink().name
    except OSError:
        return None
    for mounted in _MOUNTED:
        with suppress(OSError):
            return f"{boot} {name} {(mounted / name).stat().st_ino}"
    return None


def _reason(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def _sync_all() -> None:
    """Sync all disks; a no-op on Windows."""
    if sys.platform != "win32":
        os.sync()
