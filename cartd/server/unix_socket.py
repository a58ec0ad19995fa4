"""A Unix socket to listen on: taken over from a service that was killed, and closed to strangers.

A socket's file outlives the process that listened on it.  Whether anybody still does is found out
by connecting: a process's number tells nothing, as in a container every service is number 1.
Nothing stands beside the file that could be left over as well.
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
"""The mode of the file, if the endpoint names none."""
LOCK_TIMEOUT = 5.0
"""Seconds for which a start waits until another one, which takes milliseconds, has its socket."""
POLL_INTERVAL = 0.02

_LISTENING = frozenset({0, errno.EAGAIN, errno.EINPROGRESS})
"""What connecting gives where somebody listens, be it with a full queue."""


@implementer(IStreamServerEndpoint)
class UnixSocketEndpoint:
    """Listens on a Unix socket, as Twisted's endpoint does but for the file."""

    def __init__(self, reactor: Any, endpoint: UnixEndpoint, umask: int) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        mode = endpoint.mode
        self._mode = DEFAULT_MODE & ~umask if mode is None else mode

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Bind at once.

        The Deferred may fail with ConfigError: somebody answers there, or it cannot be taken over.
        """
        return defer.execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        path = self._endpoint.path
        # Between bind and listen nobody answers, and another start would take it for left over.
        with _locked(path.parent):
            _remove_stale_socket(path)
            return _bind(path, factory, self._endpoint.backlog, self._mode, self._reactor)


if sys.platform == "win32":

    def _connect(path: Path) -> int:
        return errno.ENOSYS

    def _bind(
        path: Path, factory: IProtocolFactory, backlog: int, mode: int, reactor: Any
    ) -> IListeningPort:
        raise ConfigError("there are no Unix sockets here")

else:
    from twisted.internet import unix

    class _Port(unix.Port):
        """Removes its file in the end only if that is still its own."""

        _own_inode: tuple[int, int] | None = None

        def startListening(self) -> None:
            super().startListening()
            self._own_inode = _inode(self._bindPath)

        def connectionLost(self, reason: Failure) -> None:
            if self._own_inode is not None and _inode(self._bindPath) == self._own_inode:
                super().connectionLost(reason)
            else:  # Twisted would fail, and never say that the port is closed
                tcp.Port.connectionLost(self, reason)

    def _connect(path: Path) -> int:
        """The errno of connecting; 0 if that works."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a service whose queue is full would have it wait
            return probe.connect_ex(os.fsencode(path))

    def _bind(
        path: Path, factory: IProtocolFactory, backlog: int, mode: int, reactor: Any
    ) -> IListeningPort:
        """Twisted sets the mode before it listens, so that nobody connects in between."""
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
    """Let no other start look at the sockets of ``directory`` meanwhile, if it can be locked.

    :raises ConfigError: another process keeps it locked.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        yield  # it may not be read, or is not there, which binding will say
        return
    try:
        end = time.monotonic() + LOCK_TIMEOUT
        while not _try_lock(descriptor):
            if time.monotonic() >= end:
                raise ConfigError(f"another process keeps the directory {directory} locked")
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
    """Remove a socket on which nobody answers.

    :raises ConfigError: somebody does, or that cannot be found out; or it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # what there is to be said of the path, binding says
    if not stat.S_ISSOCK(mode):
        raise ConfigError("the file is there already, and is no socket")
    outcome = _connect(path)
    if outcome in _LISTENING:
        raise ConfigError("another service answers there")
    if outcome not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ConfigError(f"whether a service answers there cannot be seen: {os.strerror(outcome)}")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"no service answers there, but the file cannot be removed: {error.strerror}"
        ) from None
