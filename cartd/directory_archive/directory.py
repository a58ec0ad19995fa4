"""The directory that is the archive (ids, paths, jail, reading, writing), and simulated tapes.

Strategy: every method of :class:`Directory` blocks and is one call in a thread.  An id becomes a
path in two steps: its text is checked (:func:`check_id`), then symbolic links are resolved, and the
target must be below the root.  The resolved path is opened with O_NOFOLLOW, so that a link created
in between is not followed.  Other processes that may write to the directory are trusted not to
replace directories by links at that moment.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, ClassVar

from twisted.internet.interfaces import IReactorTime

from cartd.errors import CartdError, InvalidInput, NoSpace
from cartd.files import copy_ownership
from cartd.http.ranges import Decision, Representation

INCOMING = ".cartd-archive"
"""The directory below the root for incoming files."""

MAX_COMPONENT = 255
"""Bytes; the limit of POSIX file systems for one name."""

INLINE_LIMIT = 1 << 18
"""Bytes; a slice up to this size is read in the same call that opens the file."""

STALE_AFTER = 3600.0
"""Seconds without a write after which a file in ``INCOMING`` is stale."""

_COPY = 1 << 20
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
# Opening a FIFO must not hang a thread.
_READ = os.O_RDONLY | _FLAGS | getattr(os, "O_NONBLOCK", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
# Read-only, as Pacifica's files; Windows could not replace or delete such a file.
_MODE = 0o444 if os.name == "posix" else 0o644

_WINDOWS_FORBIDDEN = re.compile(r'[\\:*?"<>|\x00-\x1f]')
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)")


class NotInArchive(CartdError):
    """No file has this id.  (Pacifica's own service answers 500.)"""

    code: ClassVar[int] = 404

    def __init__(self, archive_id: str) -> None:
        super().__init__(f"No file with id {archive_id} found")


class Forbidden(CartdError):
    """The operating system denies the access."""

    code: ClassVar[int] = 403


class Conflict(CartdError):
    """The id conflicts with an existing file or directory."""

    code: ClassVar[int] = 409


def check_id(archive_id: str, *, windows: bool = os.name == "nt") -> str:
    """Return ``archive_id`` if it is a relative path below the root, else raise InvalidInput.

    The id has been percent-decoded once: a remaining ``%2e%2e`` is an ordinary name.  One file has
    one id, so empty, ``.`` and ``..`` components are rejected, never resolved.
    """
    if "\0" in archive_id:
        raise InvalidInput("an id cannot contain a NUL")
    if archive_id.startswith("/"):
        raise InvalidInput("an id is a path relative to the root: it does not begin with '/'")
    components = archive_id.split("/")
    if components[0].casefold() == INCOMING:
        raise InvalidInput(f"{INCOMING} is not a part of the archive")
    for component in components:
        _check_component(component, windows)
    return archive_id


def _check_component(component: str, windows: bool) -> None:
    if component in ("", ".", ".."):
        raise InvalidInput(f"an id cannot have the component {component!r}")
    if len(component.encode("utf-8", "surrogatepass")) > MAX_COMPONENT:
        raise InvalidInput(f"a component of an id cannot be over {MAX_COMPONENT} bytes")
    if windows and (
        _WINDOWS_FORBIDDEN.search(component)
        or _WINDOWS_DEVICES.match(component)
        or component[-1] in ". "
    ):
        raise InvalidInput(f"{component!r} cannot be a file's name on Windows")


@dataclass(frozen=True, slots=True)
class FileStatus:
    """Size and times of a file, in bytes and Unix seconds."""

    size: int
    mtime: float
    ctime: float
    etag: str
    """Made of everything that changes with the file: a client sets the modification time, but none
    can set ctime (RFC 9110, section 8.8.3)."""

    @property
    def representation(self) -> Representation:
        return Representation(self.size, self.etag, self.mtime)


Check = Callable[[FileStatus | None], object]
"""Raises to prevent a change; it gets the status of the current file, if there is one."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A slice of a file, already read if it is small."""

    status: FileStatus
    decision: Decision
    data: bytes | None
    path: str
    """Relative to the root, with '/', links resolved."""


class Directory:
    """A directory whose files are addressed by ids, their relative paths.

    Existing files are replaced only with ``replaces``.
    """

    def __init__(self, root: Path, *, replaces: bool = False) -> None:
        self._replaces = replaces
        self._lock = Lock()
        """Held from the check of the existing file until the change."""
        self.root = root.resolve()
        self._prefix = str(self.root / "_")[:-1]
        self._incoming = self.root / INCOMING

    def status(self, archive_id: str) -> FileStatus:
        """Return the status; raise :class:`NotInArchive` if it is not a regular file."""
        with _os_errors_explained(archive_id):
            return _status(archive_id, os.lstat(self._resolve(archive_id)))

    def open(self, archive_id: str, decide: Callable[[FileStatus], Decision]) -> OpenedFile:
        """Open a file and read the part that ``decide`` selects; its exceptions propagate."""
        with _os_errors_explained(archive_id):
            path = self._resolve(archive_id)
            fd = os.open(path, _READ)
            try:
                status = _status(archive_id, os.fstat(fd))
                decision = decide(status)
                selected = decision.selected
                length = selected.stop - selected.start
                data = _read(fd, selected.start, length) if length <= INLINE_LIMIT else None
            finally:
                os.close(fd)
        return OpenedFile(status, decision, data, path[len(self._prefix) :].replace(os.sep, "/"))

    def put(
        self, archive_id: str, content: IO[bytes], length: int, mtime: float, check: Check
    ) -> None:
        """Write a temporary file, then rename it.

        :raises InvalidInput: ``content`` does not have exactly ``length`` bytes.
        :raises Conflict: a file exists that may not be replaced.
        """
        with _os_errors_explained(archive_id, writing=True):
            target = Path(self._resolve(archive_id))
            self._check_target(
                archive_id, check
            )  # early, to avoid the writing; checked again below
            part = self._new_part()
            try:
                _write(part, content, length)
                _set_mtime(part, mtime)
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._lock:
                    self._check_target(archive_id, check)
                    copy_ownership(part, target)
                    part.replace(target)
            finally:
                part.unlink(missing_ok=True)

    def move(self, archive_id: str, old_path: str, check: Check) -> str:
        """Rename the file at ``old_path`` (an id, or an absolute path below the root) to this id.

        Returns its old id.  Raises :class:`Conflict` as :meth:`put`.
        """
        old_id = old_path.removeprefix(self._prefix)
        with _os_errors_explained(old_id):
            _status(old_id, os.lstat(self._resolve(old_id)))
            source = self._name(old_id)
        with _os_errors_explained(archive_id, writing=True):
            target = Path(self._resolve(archive_id))
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._check_target(archive_id, check)
                source.replace(target)
        return old_id

    def remove(self, archive_id: str, check: Check) -> None:
        """Delete a file; if the id is a link, delete the link."""
        with _os_errors_explained(archive_id), self._lock:
            check(_status(archive_id, os.lstat(self._resolve(archive_id))))
            self._name(archive_id).unlink()

    def spool(self) -> IO[bytes]:
        """Return an unnamed file for an incoming body, on the archive's own file system."""
        self._incoming.mkdir(exist_ok=True)
        return tempfile.TemporaryFile(dir=self._incoming)

    def sweep(self) -> None:
        """Remove temporary files of a killed service; those being written are not stale."""
        if self._incoming.is_dir():
            for part in self._incoming.iterdir():
                if part.lstat().st_mtime < time.time() - STALE_AFTER:
                    part.unlink(missing_ok=True)

    def _check_target(self, archive_id: str, check: Check) -> None:
        """Raise if the existing file with this id may not be replaced."""
        try:
            current = _status(archive_id, os.lstat(self._resolve(archive_id)))
        except (FileNotFoundError, NotInArchive):
            current = None
        if current is not None and not self._replaces:
            raise Conflict(f"{archive_id} exists, and this archive does not replace files")
        check(current)

    def _resolve(self, archive_id: str) -> str:
        """Return the path with all links resolved; raise if it is outside the root."""
        return self._inside(archive_id, os.path.realpath(self._prefix + check_id(archive_id)))

    def _name(self, archive_id: str) -> Path:
        """As :meth:`_resolve`, but a link that is the last component is not resolved."""
        self._resolve(archive_id)
        path = Path(self._prefix + archive_id)
        return path.parent.resolve() / path.name

    def _inside(self, archive_id: str, path: str) -> str:
        if not path.startswith(self._prefix):
            raise InvalidInput(f"{archive_id} leads out of the archive")
        check_id(path[len(self._prefix) :].replace(os.sep, "/"))
        return path

    def _new_part(self) -> Path:
        self._incoming.mkdir(exist_ok=True)
        return self._incoming / secrets.token_hex(16)


class TapeLibrary:
    """A simulated tape library: every file is on tape until it has been recalled.

    It remembers in memory which files were recalled and when.
    """

    def __init__(self, clock: IReactorTime, delay: float, rate: float | None = None) -> None:
        """``delay``: seconds from a recall until the file is on disk.

        ``rate``: files per second that its only drive reads; None: unlimited.
        """
        self._clock = clock
        self._delay = delay
        self._read_seconds = 0.0 if rate is None else 1.0 / rate
        self._last = -math.inf
        """When the drive will have read the file that was recalled last."""
        self._ready: dict[str, float] = {}

    def on_disk(self, archive_id: str) -> bool:
        ready = self._ready.get(archive_id)
        return ready is not None and ready <= self._clock.seconds()

    def seconds_until_on_disk(self, archive_id: str) -> float:
        """Return the seconds until the file is on disk, if it is recalled by now."""
        ready = self._ready.get(archive_id, self._next())
        return max(0.0, ready - self._clock.seconds())

    def recall(self, archive_id: str) -> None:
        """Start the recall of the file; a repeated call changes nothing."""
        if archive_id not in self._ready:
            self._last = self._ready[archive_id] = self._next()

    def _next(self) -> float:
        return max(self._clock.seconds() + self._delay, self._last + self._read_seconds)

    def forget(self, archive_id: str) -> None:
        """Put the id back on tape, after a write, a move or a deletion."""
        self._ready.pop(archive_id, None)


def _status(archive_id: str, found: os.stat_result) -> FileStatus:
    if not stat.S_ISREG(found.st_mode):
        raise NotInArchive(archive_id)
    facts = (found.st_mtime_ns, found.st_size, found.st_ctime_ns, found.st_ino)
    etag = f'"{"-".join(f"{fact:x}" for fact in facts)}"'
    return FileStatus(found.st_size, found.st_mtime, found.st_ctime, etag)


def _read(fd: int, start: int, length: int) -> bytes:
    """Read exactly ``length`` bytes; raise OSError if the file has been truncated."""
    if start:
        os.lseek(fd, start, os.SEEK_SET)
    data = os.read(fd, length)
    while len(data) < length:
        more = os.read(fd, length - len(data))
        if not more:
            raise OSError(errno.EIO, "the file was truncated while it was read")
        data += more
    return data


def _write(part: Path, content: IO[bytes], length: int) -> None:
    content.seek(0)
    with os.fdopen(os.open(part, _CREATE, _MODE), "wb", buffering=0) as written:
        shutil.copyfileobj(content, written, _COPY)
        if written.tell() != length:
            raise InvalidInput(f"received {written.tell()} bytes, but {length} were declared")


def _set_mtime(part: Path, mtime: float) -> None:
    try:
        os.utime(part, (mtime, mtime))
    except (OverflowError, OSError) as error:
        raise InvalidInput(f"Last-Modified: {mtime:.0f} cannot be a file's time") from error


@contextmanager
def _os_errors_explained(archive_id: str, *, writing: bool = False) -> Iterator[None]:
    """Convert an OSError into the error for the client."""
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENAMETOOLONG:
                raise InvalidInput("the id is too long") from error
            case errno.ENOTDIR | errno.EISDIR | errno.EEXIST if writing:
                raise Conflict(f"{archive_id} cannot be a file here") from error
            case errno.ENOENT | errno.ENOTDIR | errno.ELOOP | errno.ENXIO:
                raise NotInArchive(archive_id) from error
            case errno.EACCES | errno.EPERM | errno.EROFS:
                raise Forbidden(f"{archive_id}: {error.strerror}") from error
            case errno.ENOSPC | errno.EDQUOT:
                raise NoSpace from error
        raise
