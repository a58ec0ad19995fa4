"""Listening on a Unix socket: replaces a stale socket file, and restricts its mode.

The file of a socket outlives the process that listened on it.  Whether a process still listens is
determined by connecting; process ids would not help, as in a container every service has id 1.
There is no lock file, which could become stale as well.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import defer, tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.config import UnixEndpoint
from cartd.errors import ConfigError
from cartd.locks import LocksUnsupported, try_lock

DEFAULT_MODE = 0o660
"""The mode of the socket if the endpoint specifies none, before the umask."""
LOCK_TIMEOUT = 5.0
"""Seconds to wait for another start, which holds the lock for milliseconds."""
POLL_INTERVAL = 0.02

_LISTENING = frozenset({0, errno.EAGAIN, errno.EINPROGRESS})
"""Results of connecting to a socket that a process listens on, even with a full backlog."""


@implementer(IStreamServerEndpoint)
class UnixSocketEndpoint:
    """Listens on a Unix socket as Twisted's endpoint does, but handles stale files and the mode."""

    def __init__(self, reactor: Any, endpoint: UnixEndpoint, umask: int) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        mode = endpoint.mode
        self._mode = DEFAULT_MODE & ~umask if mode is None else mode

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Bind at once.

        The Deferred fails with ConfigError if a process listens there already, or if the file
        cannot be replaced.
        """
        return defer.execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        path = self._endpoint.path
        # Between bind and listen, another start would consider the socket stale.
        with _locked(path.parent):
            _remove_stale_socket(path)
            return _bind(path, factory, self._endpoint.backlog, self._mode, self._reactor)


if sys.platform == "win32":

    def _connect(path: Path) -> int:
        return errno.ENOSYS

    def _bind(
        path: Path, factory: IProtocolFactory, backlog: int, mode: int, reactor: Any
    ) -> IListeningPort:
        raise ConfigError("Unix sockets are not supported on this system")

else:
    from twisted.internet import unix

    class _Port(unix.Port):
        """Removes its file when it is closed, but only if the file is still its own."""

        _own_path = b""
        _own_inode: tuple[int, int] | None = None

        def startListening(self) -> None:
            super().startListening()
            self._own_path = self.getHost().name
            self._own_inode = _inode(self._own_path)

        def connectionLost(self, reason: Failure) -> None:
            if self._own_inode is not None and _inode(self._own_path) == self._own_inode:
                super().connectionLost(reason)
            else:  # Twisted would fail, and the port would never count as closed
                tcp.Port.connectionLost(self, reason)

    def _connect(path: Path) -> int:
        """Return the errno of connecting; 0 on success."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # connecting to a full backlog would block
            return probe.connect_ex(os.fsencode(path))

    def _bind(
        path: Path, factory: IProtocolFactory, backlog: int, mode: int, reactor: Any
    ) -> IListeningPort:
        """Bind and listen.  Twisted sets the mode before it listens, before clients can connect."""
        port = _Port(os.fsencode(path), factory, backlog, mode, reactor)
        port.startListening()
        return port


def _inode(path: bytes) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock on ``directory``, if it supports that, against concurrent starts.

    :raises ConfigError: another process holds the lock for too long.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        yield  # not readable or missing, which binding will report
        return
    try:
        end = time.monotonic() + LOCK_TIMEOUT
        while not _try_lock(descriptor):
            if time.monotonic() >= end:
                raise ConfigError(f"the directory {directory} is locked by another process")
            time.sleep(POLL_INTERVAL)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except LocksUnsupported:
        return True


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket that no process listens on.

    :raises ConfigError: a process listens on it, that cannot be determined, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # binding will report what is wrong with the path
    if not stat.S_ISSOCK(mode):
        raise ConfigError("the file exists and is not a socket")
    outcome = _connect(path)
    if outcome in _LISTENING:
        raise ConfigError("another process listens on it")
    if outcome not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ConfigError(f"cannot check whether a process listens on it: {os.strerror(outcome)}")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"no process listens on it, but the file cannot be removed: {error.strerror}"
        ) from None
