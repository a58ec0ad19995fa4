"""Files in ``incoming/``: written under a temporary name there, renamed when they are complete.

:class:`IncomingFile` consumes the body of one file from the archive.  Its strategy: the reactor
collects bytes, a thread hashes and writes them.  While a thread writes one block, the next is
collected; when that is large too, the producer is paused.  So at most two blocks of a file are in
memory, at most one thread works on it, and the order needs no queue.

The functions and :class:`PartialFile` block and belong in a thread; for one :class:`PartialFile`,
in one at a time.

Trial files are temporary files there that belong to no cart.  A process that writes one holds a
shared lock on ``incoming/``, as on a cart that is being sent: under an exclusive lock, all trial
files are leftovers of processes that have ended.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from typing import Final, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.checksum import Checksum
from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import BatchingThreadRunner, ThreadRunner
from cartd.errors import VolumeDamaged
from cartd.model import Cart, CartFile
from cartd.volume.identity import VolumeIdentity
from cartd.volume.locks import SharedLock, exclusive_lock
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import DiskThreads, remove_tree, rename_then_remove
from cartd.volume.rooted_fs import (
    CREATE_FLAGS,
    HAS_DIR_FD,
    MkdirFS,
    MkdirFSCache,
    RootedFS,
    list_entries,
    translate_disk_errors,
)

BLOCK: Final = 1 << 20
"""Bytes that are worth a call in a thread."""
HIGH_WATERMARK: Final = 2 * BLOCK
"""Bytes collected while a thread is busy, at which the producer is paused."""
MAX_PIECES: Final = 1024
"""Pieces that are collected before they are joined: pieces of one byte must not fill the memory."""
FILE_MODE = 0o644  # less the umask; until the rename, the mode of incoming/ denies others access
TRIAL = ".trial"
_LEFTOVER = re.compile(r"\.(?:trial|cartd-volume)-[0-9a-f]{16}")
"""Trial files, and directories in which names are tested."""


class Incoming:
    """The files in ``incoming/``: of carts that are being staged, bundled or removed."""

    def __init__(
        self,
        paths: VolumePaths,
        identity: VolumeIdentity,
        threads: ThreadRunner,
        disk: DiskThreads,
        fs_cache: MkdirFSCache,
    ) -> None:
        self._paths = paths
        self._identity = identity
        self._threads = threads
        self._batch_threads = BatchingThreadRunner(threads)
        self._disk = disk
        self._fs_cache = fs_cache

    def open(self, cart: Cart, file: CartFile, checksum: Checksum) -> IncomingFile:
        """Return the consumer of the bytes of ``file``.

        Raises ``ValueError`` for a path that cannot be in the tree.
        """
        final = self._paths.member(cart, file.path)
        temporary = self._paths.temporary(cart.id, file.position)
        partial = PartialFile(temporary, final, self._fs_cache.get(cart.id))
        return IncomingFile(partial, checksum, file.mtime, self._threads, self._batch_threads)

    async def clear(self, cart_id: int, *, include_staged: bool = False) -> None:
        """Remove leftovers of an interrupted staging, bundling or removal of the cart.

        ``include_staged``: also remove the cart's own directory, which holds foreign files.
        """
        await self._disk.run_in_slices(
            self._paths.incoming(cart_id),
            lambda should_stop: self._clear(cart_id, include_staged, should_stop),
        )
        self._fs_cache.close(cart_id)

    async def size(self) -> int:
        """Return the bytes of incomplete files, and of bundles whose trees are being removed."""
        return await self._threads.run(incoming_bytes, self._paths.root, self._paths.all_incoming)

    def _clear(self, cart_id: int, include_staged: bool, should_stop: Callable[[], bool]) -> None:
        self._identity.check()
        with RootedFS(self._paths.root) as fs:
            if include_staged:
                old = self._paths.temporary(cart_id, "old")
                rename_then_remove(fs, self._paths.cart(cart_id), old, should_stop)
            remove_tree(fs, self._paths.incoming(cart_id), should_stop)


class State(Enum):
    """What happens to an incoming file."""

    RECEIVING = auto()
    """Its bytes are collected; no thread works on it."""
    WRITING = auto()
    """A thread hashes and writes a block; the next one is collected."""
    FINISHING = auto()
    """All bytes were received; a thread still writes a block."""
    COMPLETING = auto()
    """A thread writes the rest, verifies the file and commits it."""
    ABORTING = auto()
    """It was aborted; a thread still writes a block."""
    DISCARDING = auto()
    """A thread removes it."""
    COMMITTED = auto()
    """It is in its place."""
    FAILED = auto()
    """It is removed, as it was aborted or its write or verification failed."""

    __hash__ = object.__hash__  # faster: each file has several transitions


class _Event(Enum):
    BLOCK = auto()
    """A block is worth a call in a thread."""
    WRITTEN = auto()
    """The thread has written its block."""
    FINISH = auto()
    ABORT = auto()
    COMMIT = auto()
    FAIL = auto()

    __hash__ = object.__hash__


_BUSY: Final = (
    State.WRITING,
    State.FINISHING,
    State.COMPLETING,
    State.ABORTING,
    State.DISCARDING,
)
"""A thread works on the file; it may fail."""
_ENDED: Final = (State.COMMITTED, State.FAILED)
_TRANSITIONS: Final[dict[tuple[State, _Event], State]] = {
    (State.RECEIVING, _Event.BLOCK): State.WRITING,
    (State.WRITING, _Event.WRITTEN): State.RECEIVING,
    (State.RECEIVING, _Event.FINISH): State.COMPLETING,
    (State.WRITING, _Event.FINISH): State.FINISHING,
    (State.FINISHING, _Event.WRITTEN): State.COMPLETING,
    (State.COMPLETING, _Event.COMMIT): State.COMMITTED,
    (State.RECEIVING, _Event.ABORT): State.DISCARDING,
    (State.WRITING, _Event.ABORT): State.ABORTING,
    (State.FINISHING, _Event.ABORT): State.ABORTING,
    (State.ABORTING, _Event.WRITTEN): State.DISCARDING,
    **{(state, _Event.FAIL): State.FAILED for state in _BUSY},
}
"""Any other event leaves the state as it is: a file that is being completed is not aborted."""


@implementer(IConsumer)
class IncomingFile:
    """Consumer of a file's bytes from a push producer; the file appears when it is verified.

    A body of less than a block is written in one call, which ``batch_threads`` may batch with those
    of other files; ``threads`` run all others.  When a call fails (a full disk, a byte too many),
    the producer is stopped at once, and :meth:`finish` raises the error.
    """

    def __init__(
        self,
        partial: PartialFile,
        checksum: Checksum,
        mtime: int | None,
        threads: ThreadRunner,
        batch_threads: ThreadRunner,
    ) -> None:
        self._partial = partial
        self._checksum = checksum
        self._mtime = mtime
        self._threads = threads
        self._batch_threads = batch_threads
        self._producer: IPushProducer | None = None
        self._paused = False
        self._pieces: list[bytes] = []
        self._collected = 0
        self._state = State.RECEIVING
        self._outcome: str | BaseException | None = None
        self._waiters: list[Deferred[None]] = []

    @property
    def state(self) -> State:
        return self._state

    @property
    def received(self) -> int:
        """How many bytes were received, except those that a thread is hashing."""
        return self._checksum.seen + self._collected

    @property
    def failure(self) -> BaseException | None:
        """The error for which the producer was stopped, if any: the cause of a broken transfer."""
        return self._outcome if isinstance(self._outcome, BaseException) else None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if not streaming:
            raise TypeError("an incoming file takes a push producer")
        self._producer = cast(IPushProducer, producer)
        self._paused = False
        if self._state in _ENDED:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if self._state is not State.RECEIVING and self._state is not State.WRITING:
            return
        self._pieces.append(data)
        self._collected += len(data)
        if len(self._pieces) >= MAX_PIECES:
            self._pieces = [b"".join(self._pieces)]
        if self._collected >= BLOCK:
            if self._state is State.RECEIVING:
                self._handle(_Event.BLOCK)
            if self._state is State.WRITING and self._collected >= HIGH_WATERMARK:
                self._pause()

    async def finish(self) -> str:
        """Wait for the writes, verify, commit the file; return the hash in lower-case hex.

        Raises :class:`~cartd.checksum.Mismatch`, :class:`~cartd.errors.NoSpace` or ``OSError``,
        or ``CancelledError`` after :meth:`abort`; then no file is left.  When cancelled, it ends
        only after the thread has ended; a file that was committed by then stays.
        """
        self._handle(_Event.FINISH)
        try:
            await self._end()
        except CancelledError:
            await self.abort()
            raise
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    async def abort(self) -> None:
        """Discard the file unless it is committed already; ends when it has been removed."""
        self._handle(_Event.ABORT)
        await uncancellable(self._end())

    def _end(self) -> Deferred[None]:
        if self._state in _ENDED:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def _handle(self, event: _Event) -> None:
        """Change the state, and start the job of the new one, if it has one."""
        before = self._state
        self._state = after = _TRANSITIONS.get((before, event), before)
        if after is before:
            return
        if after is State.WRITING:
            self._start_job(self._threads.run(self._append, self._take_pieces()))
        elif after is State.COMPLETING:
            small = not self._partial.started and self._collected < BLOCK
            runner = self._batch_threads if small else self._threads
            self._start_job(runner.run(self._complete, self._take_pieces()))
        elif after is State.DISCARDING:
            self._take_pieces()
            if self._partial.started:
                self._start_job(self._threads.run(self._discard))
            else:
                self._partial.discard()  # it has no file yet, but retains its directories
                self._set_outcome(CancelledError())

    def _take_pieces(self) -> list[bytes]:
        taken, self._pieces, self._collected = self._pieces, [], 0
        return taken

    def _start_job(self, job: Deferred[str | None]) -> None:
        # This Deferred is never passed out, so it cannot be cancelled: a job always ends.
        job.addCallbacks(self._job_done, self._job_failed)

    def _job_done(self, digest: str | None) -> None:
        if digest is not None:
            self._set_outcome(digest)
            return
        self._handle(_Event.WRITTEN)
        if self._state is State.RECEIVING and self._collected >= BLOCK:
            self._handle(_Event.BLOCK)
        if self._collected < HIGH_WATERMARK:
            self._resume()

    def _job_failed(self, failure: Failure) -> None:
        self._set_outcome(cast(BaseException, failure.value))

    def _set_outcome(self, outcome: str | BaseException) -> None:
        self._outcome = outcome
        self._handle(_Event.COMMIT if isinstance(outcome, str) else _Event.FAIL)
        self._take_pieces()
        if self._producer is not None and not isinstance(outcome, str):
            self._producer.stopProducing()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _pause(self) -> None:
        if self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def _resume(self) -> None:
        if self._producer is not None and self._paused and self._state not in _ENDED:
            self._paused = False
            self._producer.resumeProducing()

    # The methods below run in threads, one call at a time.

    def _append(self, pieces: list[bytes]) -> None:
        try:
            data = b"".join(pieces)
            self._checksum.update(data)
            self._partial.append(data)
        except BaseException:
            self._partial.discard()
            raise

    def _complete(self, pieces: list[bytes]) -> str:
        try:
            data = b"".join(pieces)  # no copy if there is one piece
            self._checksum.update(data)
            digest = self._checksum.finish()
            self._partial.append(data)
            self._partial.commit(mtime=self._mtime)
        except BaseException:
            self._partial.discard()
            raise
        return digest

    def _discard(self) -> None:
        self._partial.discard()
        raise CancelledError


class PartialFile:
    """New bytes for ``final``, written to ``temporary`` until :meth:`commit`.

    Both are below the root of ``fs``, which is retained until the file is committed or discarded,
    and on one file system.  Errors are those of :func:`translate_disk_errors`.
    """

    def __init__(self, temporary: Path, final: Path, fs: MkdirFS) -> None:
        self._temporary = temporary
        self._final = final
        self._fs = fs
        self._fd: int | None = None
        self._created = False
        self._retained = True
        fs.retain()

    @property
    def started(self) -> bool:
        """Whether the temporary file has been opened."""
        return self._fd is not None

    def append(self, data: bytes) -> None:
        with translate_disk_errors(self._final, self._fs.root):
            fd = self._open_fd()
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]

    def chown_to_owner_of(self, directory: Path) -> None:
        """Change the owner to that of ``directory``, the service's account, if this is root."""
        if sys.platform != "win32" and os.geteuid() == 0:
            owner = directory.stat()
            os.fchown(self._open_fd(), owner.st_uid, owner.st_gid)

    def sync(self) -> None:
        """Sync the appended bytes to the disk."""
        with translate_disk_errors(self._final, self._fs.root):
            os.fsync(self._open_fd())

    def commit(self, *, mtime: int | None = None, durable: bool = False) -> None:
        """Set the modification time (Unix seconds) and rename the file to its final name.

        A symbolic link at the final name is replaced, not followed.
        """
        with translate_disk_errors(self._final, self._fs.root):
            fd = self._open_fd()
            if mtime is not None:
                self._set_mtime(fd, mtime)
            if durable:
                os.fsync(fd)
            self._close()
            replace(self._temporary, self._final, self._fs)
            if durable:
                sync_directories(self._final.parent, self._fs)
        self._release_fs()

    def discard(self) -> None:
        """Close and remove the temporary file; may be called at any time, and repeatedly.

        A file that cannot be removed now is removed when the cart is restaged or deleted.
        """
        if self._fd is not None:
            with suppress(OSError):
                self._close()
        if self._created:
            # Not by MkdirFS: directories that have been removed must not be created again.
            with suppress(OSError), RootedFS(self._fs.root) as fs:
                fs.unlink(self._temporary)
        self._release_fs()

    def _open_fd(self) -> int:
        if self._fd is None:
            try:
                self._fd = self._fs.open(self._temporary, CREATE_FLAGS, FILE_MODE)
            except FileNotFoundError:
                self._fs.close()
                self._fd = self._fs.open(self._temporary, CREATE_FLAGS, FILE_MODE)
            self._created = True
        return self._fd

    def _set_mtime(self, fd: int, mtime: int) -> None:
        try:
            os.utime(fd if os.utime in os.supports_fd else self._temporary, (mtime, mtime))
        except (OverflowError, OSError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            raise OSError(number, f"its modification time {mtime} cannot be set") from error

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _release_fs(self) -> None:
        if self._retained:
            self._retained = False
            self._fs.release()


def replace(temporary: Path, final: Path, fs: MkdirFS) -> None:
    """Rename ``temporary`` to ``final``, and replace what is there."""
    try:
        try:
            fs.rename_into_place(temporary, final)
        except (IsADirectoryError, PermissionError):  # PermissionError on Windows
            if not fs.is_directory(final):
                raise
            fs.evict_directory(final)
            fs.rename_into_place(temporary, final)
    except FileNotFoundError:
        fs.close()  # an open directory has been removed
        raise


def sync_directories(directory: Path, fs: RootedFS) -> None:
    """Sync ``directory`` and its parents up to the root, so that names survive a power failure.

    A no-op where directories cannot be opened.
    """
    if not HAS_DIR_FD:
        return
    for level in (directory, *directory.parents):
        with fs.directory(level) as opened:
            os.fsync(opened)
        if level == fs.root:
            return


def incoming_bytes(root: Path, incoming: Path) -> int:
    """Return the bytes of the files in ``incoming/ID`` and of the bundles of these carts.

    A file with two names is being linked from another cart, and takes no space of its own.
    """
    with RootedFS(root) as fs:
        return sum(
            status.st_size
            for of_cart, _ in list_entries(fs, incoming)
            for directory in (incoming / of_cart, root / of_cart)
            for _, status in list_entries(fs, directory)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        )


@contextmanager
def trial_file(paths: VolumePaths, hint: str) -> Iterator[Path]:
    """Yield a unique path in ``incoming/``; :func:`remove_leftovers` does not remove it meanwhile.

    Raises ``OSError`` if another process holds the exclusive lock.
    """
    lock = SharedLock(paths.all_incoming)
    try:
        lock.acquire()
    except VolumeDamaged:
        reason = "another process that is starting has locked incoming/: stop it, or wait for it"
        raise OSError(errno.EBUSY, reason, str(paths.all_incoming)) from None
    try:
        yield paths.all_incoming / f"{hint}-{secrets.token_hex(8)}"
    finally:
        lock.release()


def remove_leftovers(paths: VolumePaths) -> None:
    """Remove leftovers of killed starts, unless another process is writing trial files."""
    with exclusive_lock(paths.all_incoming) as acquired:
        if acquired:
            with RootedFS(paths.root) as fs:
                for directory in (paths.root, paths.all_incoming):
                    for name, _ in list_entries(fs, directory):
                        if _LEFTOVER.fullmatch(name):
                            remove_tree(fs, directory / name)
