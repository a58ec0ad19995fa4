"""Removal of carts and of trees, atomic for readers; orphans.

Strategy: a tree is first renamed into its cart's directory in ``incoming/`` and removed there, so
no partial tree is ever visible under its name.  A crash in between leaves ``incoming/ID``, which
the next start finds and clears.

Orphans are carts on the volume that may be missing in the store.

The functions here block: for threads.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Final, ParamSpec, TypeVar

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import InvalidInput, Unavailable, escape, raise_if_transient
from cartd.model import Cart, CartFile, check_uid
from cartd.volume.identity import VolumeIdentity
from cartd.volume.locks import exclusive_lock
from cartd.volume.paths import CART_ID, VolumePaths, check_component
from cartd.volume.rooted_fs import (
    DIRECTORY_FLAGS,
    HAS_DIR_FD,
    MkdirFSCache,
    RootedFS,
    list_entries,
    raise_occupied,
    translate_disk_errors,
)

MAX_ATTEMPTS = 20
"""Attempts to remove a directory to which other processes still write."""
MAX_DEPTH_OPEN: Final = 25
"""Directories that are open at once, with two descriptors each; deeper ones are moved up."""
PAGE: Final = 1000
"""Entries of a directory that are in memory at once."""
TIME_SLICE: Final = 0.5
"""Seconds for which a thread removes the files of one tree at a time."""
_NO_LINK = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP})
"""Errors of reading a link that does not exist, or is not a link."""
_RACE_ERRNOS = frozenset(
    {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EMLINK}
)
"""Another process adds to a directory, or has replaced a directory by a file or the reverse."""

log = Logger()
P = ParamSpec("P")
T = TypeVar("T")


class TimeSliceEnded(Exception):
    """The time slice of a removal is over; the rest of the tree still exists."""


class TimeSlice:
    """The time for which a thread removes files before it does other work.

    Call it before each file: it returns whether the service stops, and raises
    :class:`TimeSliceEnded` when the time is over.
    """

    def __init__(self, should_stop: Callable[[], bool], seconds: float = TIME_SLICE) -> None:
        self._should_stop = should_stop
        self._end = time.monotonic() + seconds

    def __call__(self) -> bool:
        if self._should_stop():
            return True
        if time.monotonic() > self._end:
            raise TimeSliceEnded
        return False


class RemovalStopped(Unavailable):
    """The service stops; the rest of the tree is removed later."""

    def __init__(self) -> None:
        super().__init__("The service is stopping")


class DiskThreads:
    """Runs changes below ``root`` in threads; each ends before its coroutine, cancelled or not.

    Errors are those of :func:`translate_disk_errors`.
    """

    def __init__(self, root: Path, threads: ThreadRunner, stopping: threading.Event) -> None:
        """While ``stopping`` is set, removals are interrupted: a large tree takes minutes."""
        self._root = root
        self._threads = threads
        self._stopping = stopping

    async def run(self, path: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def call() -> T:
            with translate_disk_errors(path, self._root):
                return work(*args, **kwargs)

        return await uncancellable(self._threads.run(call))

    async def run_in_slices(self, path: Path, work: Callable[[Callable[[], bool]], T]) -> T:
        """Return the result of ``work``, called again until it ends within one time slice.

        ``work`` removes files until its argument raises :class:`TimeSliceEnded`.  So concurrent
        removals share the threads fairly, and no other work waits for a large tree.
        """

        def call() -> T:
            with translate_disk_errors(path, self._root):
                return work(TimeSlice(self._stopping.is_set))

        while True:
            try:
                return await uncancellable(self._threads.run(call))
            except TimeSliceEnded:
                continue


class CartRemover:
    """Removes carts, and files of carts, from the volume."""

    def __init__(
        self,
        paths: VolumePaths,
        identity: VolumeIdentity,
        disk: DiskThreads,
        removals: DiskThreads,
        fs_cache: MkdirFSCache,
    ) -> None:
        """``removals`` remove carts, ``disk`` single files."""
        self._paths = paths
        self._identity = identity
        self._disk = disk
        self._removals = removals
        self._fs_cache = fs_cache

    async def remove_one_file(self, cart: Cart) -> bool:
        """Remove one file of the cart, to test whether its files can be removed.

        False, and nothing is removed, if the cart is being sent.  Nothing is removed if it raises.
        Raises :class:`RemovalStopped`, as the rest could not be removed.
        """
        return await self._removals.run_in_slices(
            self._paths.cart(cart.id),
            lambda should_stop: self._remove_one_file(cart, should_stop),
        )

    async def remove(self, cart: Cart) -> bool:
        """Remove the cart's tree, bundle, link and incoming files; idempotent.

        False, and nothing is removed, if the cart is being sent.  Raises :class:`RemovalStopped`.
        """
        removed = await self._removals.run_in_slices(
            self._paths.cart(cart.id),
            lambda should_stop: self._remove(cart, should_stop),
        )
        self._fs_cache.close(cart.id)
        return removed

    async def drop_files(self, cart: Cart, files: Sequence[CartFile]) -> None:
        """Remove those files from the cart's tree, if they exist."""
        try:
            tree = self._paths.tree(cart)
        except ValueError:
            return  # such a cart cannot have files on the volume
        await self._disk.run(tree, self._drop, cart, files)

    # The methods below run in threads.

    def _remove_one_file(self, cart: Cart, should_stop: Callable[[], bool]) -> bool:
        if should_stop():
            raise RemovalStopped
        self._identity.check()
        directory = self._paths.cart(cart.id)
        with exclusive_lock(directory) as acquired:
            if acquired:
                with RootedFS(self._paths.root) as fs:
                    remove_one_file(fs, directory)
        return acquired

    def _remove(self, cart: Cart, should_stop: Callable[[], bool]) -> bool:
        self._identity.check()
        with exclusive_lock(self._paths.cart(cart.id)) as acquired:
            if acquired:
                with suppress(ValueError):  # a uid that cannot be a name has no link
                    remove_link(self._paths, cart)
                aside = self._paths.temporary(cart.id, "removed")
                with RootedFS(self._paths.root) as fs:
                    rename_then_remove(fs, self._paths.cart(cart.id), aside, should_stop)
                    remove_tree(fs, self._paths.incoming(cart.id), should_stop)
        return acquired

    def _drop(self, cart: Cart, files: Sequence[CartFile]) -> None:
        self._identity.check()
        with RootedFS(self._paths.root) as fs:
            if not fs.is_directory(self._paths.tree(cart)):
                return
            for file in files:
                with suppress(ValueError):  # a file that cannot have that path does not exist
                    remove_tree(fs, self._paths.member(cart, file.path))


@dataclass(frozen=True, slots=True)
class Orphan:
    """What looks like a cart: ``ROOT/ID`` with a tree or bundle of one uid, or ``incoming/ID``."""

    cart_id: int
    size: int
    """Bytes of its files, including those shared with other carts by hard links."""


class OrphanDirectories:
    """Finds and removes carts by their ids alone, which may be missing in the store."""

    def __init__(
        self,
        paths: VolumePaths,
        identity: VolumeIdentity,
        threads: ThreadRunner,
        removals: DiskThreads,
    ) -> None:
        self._paths = paths
        self._identity = identity
        self._threads = threads
        self._removals = removals

    async def cart_ids(self) -> list[int]:
        """Return the ids, ascending, that have a directory: carts, and leftovers of crashes."""
        return await self._threads.run(self._ids)

    async def find(self, cart_ids: Sequence[int]) -> list[Orphan]:
        """Return those of the ids whose directories contain only what cartd creates."""
        return await self._threads.run(self._find, cart_ids)

    async def set_aside(self, cart_ids: Sequence[int]) -> list[Path]:
        """Rename the directories of these ids, quickly; return the paths to be removed."""
        return await uncancellable(self._threads.run(self._set_aside, cart_ids))

    async def remove_aside(self, aside: Sequence[Path]) -> None:
        """Remove what was set aside; that may take long."""
        for one in aside:
            await self._removals.run_in_slices(one, partial(self._remove_one_aside, one))

    # The methods below run in threads.

    def _ids(self) -> list[int]:
        self._identity.check()
        ids: set[int] = set()
        with RootedFS(self._paths.root) as fs:
            for directory in (self._paths.root, self._paths.all_incoming):
                with fs.directory(directory) as opened, os.scandir(opened) as found:
                    ids.update(
                        int(entry.name)
                        for entry in found
                        if CART_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                    )
        return sorted(ids)

    def _find(self, cart_ids: Sequence[int]) -> list[Orphan]:
        found = []
        with RootedFS(self._paths.root) as fs:
            for cart_id in cart_ids:
                place, incoming = self._paths.cart(cart_id), self._paths.incoming(cart_id)
                if not fs.exists(place) or _uid_in(fs, place) is not None:
                    found.append(Orphan(cart_id, _size_of(fs, place, incoming)))
        return found

    def _set_aside(self, cart_ids: Sequence[int]) -> list[Path]:
        self._identity.check()
        aside: list[Path] = []
        with RootedFS(self._paths.root) as fs:
            for cart_id in cart_ids:
                place, incoming = self._paths.cart(cart_id), self._paths.incoming(cart_id)
                if uid := _uid_in(fs, place):
                    remove_link_of(self._paths, cart_id, uid)
                with translate_disk_errors(place, self._paths.root):
                    fs.ensure_directory(incoming)
                    if fs.exists(place):
                        fs.rename(place, self._paths.temporary(cart_id, "orphan"))
                    aside += (incoming / name for name, _ in list_entries(fs, incoming))
        return aside

    def _remove_one_aside(self, one: Path, should_stop: Callable[[], bool]) -> None:
        with RootedFS(self._paths.root) as fs:
            remove_tree(fs, one, should_stop)
            with suppress(OSError):
                fs.rmdir(one.parent)  # unless it is in use again


def _uid_in(fs: RootedFS, place: Path) -> str | None:
    """Return the uid if ``place`` contains only the tree or bundle of one, as cartd creates it.

    '' if it is empty; None if it contains something else.
    """
    uids = set()
    try:
        with fs.directory(place) as opened, os.scandir(opened) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    uids.add(check_uid(entry.name))
                elif entry.is_file(follow_symlinks=False) and entry.name.endswith(".tar"):
                    uids.add(check_uid(entry.name.removesuffix(".tar")))
                else:
                    return None
    except (OSError, InvalidInput):
        return None
    return (uids or {""}).pop() if len(uids) < 2 else None


def _size_of(fs: RootedFS, *trees: Path) -> int:
    """Return the bytes of all regular files, each counted once however many names it has."""
    seen: set[tuple[int, int]] = set()
    total = 0
    directories = list(trees)
    while directories:
        directory = directories.pop()
        for name, status in list_entries(fs, directory):
            if S_ISDIR(status.st_mode):
                directories.append(directory / name)
            elif S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total


def remove_link(paths: VolumePaths, cart: Cart) -> None:
    """Remove the link of the cart's uid if it points to this cart, to its tree or its bundle."""
    remove_link_of(paths, cart.id, cart.uid)


def remove_link_of(paths: VolumePaths, cart_id: int, uid: str) -> None:
    """As :func:`remove_link`, for a caller that has only the id and the uid."""
    link = paths.links / check_component(uid)
    own_targets = (f"../{cart_id}/{uid}", f"../{cart_id}/{uid}.tar")
    with RootedFS(paths.root) as fs:
        try:
            with fs.entry(link) as (name, dir_fd):
                target = os.readlink(name, dir_fd=dir_fd).replace(os.sep, "/")
        except NotImplementedError:
            return
        except OSError as error:
            raise_if_transient(error)
            if error.errno not in _NO_LINK:
                raise
            return
        if target in own_targets:
            with translate_disk_errors(link, paths.root):
                fs.unlink(link)


def evict_foreign(paths: VolumePaths, cart_id: int, occupied: Path) -> None:
    """Remove a foreign file or directory in the tree of a cart that occupies a path of the cart.

    Raises ``NotADirectoryError`` if ``occupied`` is not in that tree.
    """
    own = paths.cart(cart_id)
    if occupied != own and own not in occupied.parents:
        raise_occupied(occupied)
    log.warn(
        "{path} occupies the path of a file of cart {id}; it is removed",
        path=escape(str(occupied)),
        id=cart_id,
    )
    with RootedFS(paths.root) as fs:
        rename_then_remove(fs, occupied, paths.temporary(cart_id, "in-the-way"))


def _never() -> bool:
    return False


def rename_then_remove(
    fs: RootedFS,
    tree: Path,
    aside: Path,
    should_stop: Callable[[], bool] = _never,
    *,
    make: Callable[[RootedFS, Path], None] = RootedFS.ensure_directory,
) -> None:
    """Rename ``tree`` to ``aside`` and remove it there, if it exists.

    If it cannot be renamed, as on a disk that is too full for another name, it is removed in place.
    ``make`` is a parameter for the tests of such a disk.
    """
    try:
        for _ in range(MAX_ATTEMPTS):
            if not fs.exists(tree):
                break
            make(fs, aside.parent)
            # Another process that removes the same cart may have removed either directory.
            with suppress(FileNotFoundError):
                fs.rename(tree, aside)
            fs.close()  # open directories may have been renamed or removed
    except OSError:
        remove_tree(fs, tree, should_stop)
    remove_tree(fs, aside, should_stop)


def remove_one_file(fs: RootedFS, tree: Path) -> None:
    """Remove one file of ``tree``, in place, or an empty directory; nothing if it does not exist.

    If this raises, the tree is unchanged.
    """
    if not fs.is_directory(tree):
        fs.unlink(tree)
        return
    directory = tree
    while (found := _any_entry(fs, directory)) is not None:
        name, is_directory = found
        if not is_directory:
            fs.unlink(directory / name)
            return
        directory = directory / name
    with suppress(FileNotFoundError):
        fs.rmdir(directory)


def _any_entry(fs: RootedFS, directory: Path) -> tuple[str, bool] | None:
    """Return a name in the directory and whether that is a directory; None if there is no name."""
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        fs.directory(directory) as opened,
        os.scandir(opened) as found,
    ):
        for entry in found:
            return entry.name, entry.is_dir(follow_symlinks=False)
    return None


def remove_tree(fs: RootedFS, tree: Path, should_stop: Callable[[], bool] = _never) -> None:
    """Remove ``tree``, a file or a directory, even if other processes add to it or remove from it.

    A symbolic link, ``tree`` itself or one inside it, is removed and never followed; if there is
    one on the way to ``tree``, nothing is removed.
    Raises :class:`RemovalStopped` as soon as ``should_stop()`` is true.
    """
    if not HAS_DIR_FD:
        _remove_by_path(tree)
        return
    try:
        with fs.entry(tree) as (name, dir_fd):
            _remove(name, dir_fd, should_stop)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        if fs.exists(tree):
            raise


def _remove_by_path(tree: Path) -> None:
    """On Windows, without interruption."""
    if tree.is_dir() and not tree.is_symlink():
        shutil.rmtree(tree)
    else:
        tree.unlink(missing_ok=True)


def _remove(name: str, dir_fd: int | None, should_stop: Callable[[], bool]) -> None:
    attempt = 1
    while True:
        try:
            if S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                _remove_directory(name, dir_fd, should_stop)
            else:
                os.unlink(name, dir_fd=dir_fd)
            return
        except OSError as error:
            if error.errno not in _RACE_ERRNOS or attempt == MAX_ATTEMPTS:
                raise
        attempt += 1


def _remove_directory(name: str, dir_fd: int | None, should_stop: Callable[[], bool]) -> None:
    top = os.open(name, DIRECTORY_FLAGS, dir_fd=dir_fd)
    try:
        while _remove_contents(top, top, 1, should_stop):
            pass
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _remove_contents(directory: int, top: int, depth: int, should_stop: Callable[[], bool]) -> bool:
    """Remove the contents; return whether a deep directory was moved up into ``top``."""
    moved_up = False
    with os.scandir(directory) as found:
        # Entries that were returned may be removed while the rest is read (POSIX, readdir).
        while page := list(islice(found, PAGE)):
            for entry in page:
                with suppress(FileNotFoundError):
                    moved_up |= _remove_entry(entry, directory, top, depth, should_stop)
    return moved_up


def _remove_entry(
    entry: os.DirEntry[str], directory: int, top: int, depth: int, should_stop: Callable[[], bool]
) -> bool:
    """As :func:`_remove_contents`, for one entry of ``directory``."""
    if not entry.is_dir(follow_symlinks=False):
        if should_stop():
            raise RemovalStopped
        os.unlink(entry.name, dir_fd=directory)
        return False
    if depth == MAX_DEPTH_OPEN:
        new = secrets.token_hex(16)
        os.rename(entry.name, new, src_dir_fd=directory, dst_dir_fd=top)
        return True
    inner = os.open(entry.name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        moved_up = _remove_contents(inner, top, depth + 1, should_stop)
    finally:
        os.close(inner)
    os.rmdir(entry.name, dir_fd=directory)
    return moved_up
