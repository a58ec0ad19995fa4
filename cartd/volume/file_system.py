"""The volume's file system: what it must have and be able to do, and syncing it to its disk.

Everything here blocks: for the start, the commands, and threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cartd.errors import CartdError, ConfigError, NoSpace, VolumeNotWritable
from cartd.volume.incoming import TRIAL, PartialFile, remove_leftovers, trial_file
from cartd.volume.name_collisions import detect_folding, trial_directory
from cartd.volume.paths import NAME_MAX, VolumePaths
from cartd.volume.rooted_fs import CREATE_FLAGS, DISK_FULL, MkdirFS, RootedFS

_EXPLANATION = "cartd knows this directory by that number, which its database has too."
_REFUSED_ERRNOS = frozenset({errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
"""Read-only, as after disk errors; I/O error; permissions lost, or immutable."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BLOCK_DEVICES = Path("/sys/dev/block")
_MOUNTED = tuple(Path("/sys/fs", kind) for kind in ("ext4", "xfs", "f2fs"))
"""Where these file systems have a directory for each device that is mounted."""


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
