"""Unpacks a tar while it arrives: each file gets its name only when it is right and on the disk.

Files are written into a hidden directory beside their future place, ``.NAME.part``, under numbers.
When the sums of a batch are right, its content is synced, at once for all; then the files are
renamed, and then the state says so.  So a name never has wrong or missing bytes, whenever the
process or the system ends, and small files do not wait for the disk one by one.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import threading
from contextlib import suppress
from hashlib import new as new_hash
from pathlib import Path

from cartd_client.contents import Contents, Item
from cartd_client.errors import ClientError, printable
from cartd_client.expected import ExpectedFiles, Wanted
from cartd_client.names import NameRules
from cartd_client.receive import Sink, complete
from cartd_client.resume import Journal, Lock, State, load_state, read_journal, write_all
from cartd_client.tar_stream import Member
from cartd_client.tree import HAS_DIR_FD, Parts, Tree

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_UTIME_BY_FD = os.utime in os.supports_fd
_BLOCK = 1 << 20
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Staging:
    """The hidden directory of one download, locked."""

    def __init__(self, root: Path, filename: str) -> None:
        """Create ``root`` and the directory, and lock it."""
        self.name = f".{filename}.part"
        self.path = root / self.name
        root.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):
                self.path.mkdir(0o700)
            found = self.path.lstat()
            if not stat.S_ISDIR(found.st_mode) or not _is_own(found):
                raise ClientError(f"{self.path} is not a directory of a download: remove it")
            try:
                self._lock = Lock(self.path / "lock", str(root))
            except FileNotFoundError:
                continue  # another process has just ended, and removed it
            break
        self.state_path = self.path / "state.json"
        self.fd = os.open(self.path, os.O_RDONLY) if HAS_DIR_FD else None

    def load(self) -> State | None:
        """Return the state of an earlier run."""
        return load_state(self.state_path)

    def clear(self) -> None:
        """Remove all that an earlier run has left."""
        for path in self.path.iterdir():
            if path.name != "lock":
                path.unlink()

    def journals(self) -> list[Path]:
        """Return the journals, the oldest first."""
        found = [path for path in self.path.iterdir() if re.fullmatch("journal[0-9]+", path.name)]
        return sorted(found, key=lambda path: int(path.name[7:]))

    def create(self, index: int, mode: int) -> int:
        """Return a descriptor of a new file."""
        return os.open(self._file(index), _CREATE | _FLAGS, mode, dir_fd=self.fd)

    def open(self, index: int, flags: int) -> int:
        """Return a descriptor of a file that is there."""
        return os.open(self._file(index), flags | _FLAGS, dir_fd=self.fd)

    def size(self, index: int) -> int | None:
        """Return the bytes of a file that are there; None without the file."""
        try:
            return os.stat(self._file(index), dir_fd=self.fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def parts(self, index: int) -> Parts:
        """Return the path of a file in the tree."""
        return (self.name, str(index))

    def close(self, *, remove: bool = False) -> None:
        """Unlock, and ``remove`` the directory and all in it."""
        if self.fd is not None:
            os.close(self.fd)
        if remove:
            with suppress(OSError):
                self.clear()
                if os.name != "nt":
                    (self.path / "lock").unlink()
        self._lock.release()
        if remove:
            with suppress(OSError):
                (self.path / "lock").unlink(missing_ok=True)
                self.path.rmdir()

    def _file(self, index: int) -> str:
        return str(index) if self.fd is not None else str(self.path / str(index))


class DirectorySink(Sink):
    """Unpacks below a directory."""

    def __init__(
        self, staging: Staging, tree: Tree, contents: Contents, *, overwrite: bool
    ) -> None:
        self.turn = threading.Lock()
        self.staging = staging
        self.tree = tree
        self._contents = contents
        # With a list, all names were checked at the beginning.
        self._checks = not overwrite and (contents.expected is None or contents.is_bag)
        self._fd = -1
        self._receiving: Item | None = None
        self._is_noted = True
        self._index = 0
        journals = staging.journals()
        self._number = int(journals[-1].name[7:]) + 1 if journals else 1
        self._old_journals = journals
        self._journal = Journal(staging.path / f"journal{self._number}")
        self._directories = (staging.path / "directories").open("a", encoding="ascii")

    # Receiving

    def begin(self, item: Item) -> None:
        self._index += 1
        item.index = self._index
        self._fd = self._create(item)
        self._receiving, self._is_noted = item, False

    def write(self, item: Item, data: memoryview) -> None:
        write_all(self._fd, data)

    def end(self, item: Item) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._set_time(fd, item)
            os.close(fd)
        self._receiving = None
        if not item.is_again:
            self._journal.add(item.index, item.member, item.outcome)
            item.is_noted = item.outcome is not None

    def flush(self) -> None:
        item = self._receiving
        if item is not None and not self._is_noted and not item.is_again:
            self._journal.add(item.index, item.member, None)
        self._is_noted = True
        self._journal.flush()

    def _set_time(self, fd: int, item: Item) -> None:
        mtime = item.member.mtime_ns
        target = fd if _UTIME_BY_FD else self.staging.path / str(item.index)
        with suppress(OSError, OverflowError):
            os.utime(target, ns=(mtime, mtime))

    # Settling

    def new_batch(self) -> Journal:
        journal = self._journal
        journal.flush()
        self._number += 1
        self._journal = Journal(self.staging.path / f"journal{self._number}")
        # The journal of the batch will be removed.
        self._is_noted = False
        self.flush()
        return journal

    def publish(self, items: list[Item], batch: Journal) -> None:
        files = [item for item in items if not item.member.is_directory and not item.is_named]
        for item in files:
            if item.outcome and not item.is_noted:
                batch.add(item.index, item.member, item.outcome)
        batch.flush()
        right = [item for item in files if item.outcome is not None]
        self.tree.sync_files([self.staging.parts(item.index) for item in right])
        with self.turn:
            self._give_names(items)
        self.tree.sync_names()
        self._directories.flush()

    def _give_names(self, items: list[Item]) -> None:
        for item in items:
            if item.member.is_directory:
                self.tree.make_directory(item.parts)
                self._directories.write(json.dumps([item.member.mtime_ns, item.parts]) + "\n")
            elif item.outcome is None:
                self.tree.remove(self.staging.parts(item.index))
            elif not item.is_named:
                self._check_free(item)
                self.tree.rename(self.staging.parts(item.index), item.parts)
                item.is_named = True

    def settled(self, batch: Journal) -> None:
        batch.close()
        for path in (*self._old_journals, batch.path):
            path.unlink()
        self._old_journals = []

    def _check_free(self, item: Item) -> None:
        """Check that the name is free, or has the same file, or one about the files of the cart."""
        if not self._checks or item.tag is not None:
            return
        found = self.tree.status(item.parts)
        if found is None or stat.S_ISDIR(found.st_mode):
            return  # a directory is never replaced
        if not is_same(self.tree, item.parts, found, item.wanted):
            raise exists_already(self.tree.root, [item.parts])

    def set_directory_times(self) -> None:
        """Give the directories their times, when nothing is created in them any more."""
        self._directories.flush()
        with (self.staging.path / "directories").open(encoding="ascii") as lines:
            for line in lines:
                with suppress(ValueError):  # a line that a kill has torn
                    mtime, parts = json.loads(line)
                    self.tree.set_mtime(tuple(parts), mtime)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._journal.close()
        with suppress(OSError):
            self._directories.close()

    # Resuming

    def forget(self) -> None:
        """Remove what is here beyond the state."""
        self._keep(set())
        for path in self._old_journals:
            path.unlink()
        self._old_journals = []

    def recover(self, state: State, boot: str) -> tuple[int, Item | None, list[Item]]:
        """Return what is here beyond the state: an offset, a file in the middle of which it is,
        and complete files, which are to be settled.

        Files that an earlier run verified are not read; the others are hashed.
        """
        position = state.position
        is_same_boot = bool(boot) and state.boot == boot
        outcomes: dict[int, str] = {}
        entries = []
        for path in self._old_journals:
            for index, outcome, member in read_journal(path):
                self._index = max(self._index, index)
                entries.append((index, member))
                if outcome is not None:
                    outcomes[index] = outcome
        items: list[Item] = []
        current: Item | None = None
        for index, member in entries:
            if member.start < position or current is not None:
                continue
            if member.start > position:
                break
            known = outcomes.get(index) if is_same_boot else None
            item, have = self._recover(index, member, known)
            if have < member.size:
                current, position = item, member.data + have
            else:
                items.append(item)
                position = member.end
        self._receiving = current
        self._keep({item.index for item in (*items, current) if item is not None})
        for item in items:
            self._journal.add(item.index, item.member, item.outcome)
        if current is not None:
            self._journal.add(current.index, current.member, None)
        self._journal.flush()
        return position, current, items

    def _recover(self, index: int, member: Member, known: str | None) -> tuple[Item, int]:
        """Return a file of the journal, and how many of its bytes are here and hashed."""
        if member.is_directory:
            item = Item(member, self._contents.parts(member))
            item.outcome = ""
            return item, 0
        item = self._contents.item(member)
        item.index = index
        have = self.staging.size(index)
        if have is None:
            found = self.tree.status(item.parts)
            if found is None or found.st_size != member.size or not stat.S_ISREG(found.st_mode):
                os.close(self._create(item))
                have = 0
            else:
                item.is_named = True
                have = member.size
        have = min(have, member.size)
        is_named = item.is_named
        fd = self.tree.open(item.parts) if is_named else self.staging.open(index, os.O_RDONLY)
        try:
            if known is not None and have == member.size and item.tag is None:
                item.outcome = known
            else:
                _hash(fd, have, item)
        finally:
            os.close(fd)
        if have < member.size:
            self._fd = self.staging.open(index, os.O_WRONLY)
            os.lseek(self._fd, have, os.SEEK_SET)
        elif item.outcome is None:
            complete(item)
        return item, have

    def _create(self, item: Item) -> int:
        # Others never get more than to read: the tar may come from a hostile service.
        return self.staging.create(item.index, item.member.mode & 0o755 | 0o600)

    def _keep(self, indices: set[int]) -> None:
        """Remove all files with other numbers."""
        for path in self.staging.path.iterdir():
            if path.name.isdigit() and int(path.name) not in indices:
                path.unlink()


def _is_own(found: os.stat_result) -> bool:
    return sys.platform == "win32" or found.st_uid == os.geteuid()


def _hash(fd: int, count: int, item: Item) -> None:
    """Feed the first bytes of a file to the item's sum, and to what reads it."""
    while count:
        data = os.read(fd, min(_BLOCK, count))
        if not data:
            return
        count -= len(data)
        if item.hasher is not None:
            item.hasher.update(data)
        if item.tag is not None:
            item.tag.feed(data)


def is_same(tree: Tree, parts: Parts, found: os.stat_result, wanted: Wanted | None) -> bool:
    """Whether a file that is there is the one that is wanted; reads it, if its size is right."""
    if wanted is None or wanted.algorithm is None or not stat.S_ISREG(found.st_mode):
        return False
    if wanted.size not in (None, found.st_size):
        return False
    state = new_hash(wanted.algorithm, usedforsecurity=False)
    with os.fdopen(tree.open(parts), "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest() == wanted.hash_sum


def check_existing(tree: Tree, expected: ExpectedFiles, rules: NameRules, top: str) -> bool:
    """Return whether all files are there already, and right.

    :raises ClientError: other files have names of the cart.
    """
    if tree.status((top,)) is None:
        return False
    count = 0
    others: list[Parts] = []
    for wanted in expected:
        parts = rules.parts(f"{top}/{wanted.path}")
        found = tree.status(parts)
        if found is None:
            continue
        if is_same(tree, parts, found, wanted):
            count += 1
        elif len(others) < 10:
            others.append(parts)
    if others:
        raise exists_already(tree.root, others)
    return count == expected.count > 0


def exists_already(root: Path, paths: list[Parts]) -> ClientError:
    """Return the error for names that other files have."""
    names = [printable("/".join(parts), 300) for parts in paths]
    return ClientError(
        f"{root} has other files under names of the cart, which are not replaced:"
        f" {', '.join(names)}; move them away, or choose another directory",
        names=names,
    )
