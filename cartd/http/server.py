"""The HTTP server around the routes: listens, accepts or rejects connections, logs requests.

:func:`listen` binds TCP, TLS and Unix sockets, and replaces the stale file of a Unix socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

from twisted.internet import defer, tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.haproxy import proxyEndpoint
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Site
from zope.interface import implementer

from cartd.auth import Authenticator, TrustedPeers
from cartd.config import Network, UnixEndpoint, is_unix, parse_tls_endpoint, parse_unix_endpoint
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError
from cartd.files import LocksUnsupported, try_lock
from cartd.http.access_log import CLIENT_CLOSED_REQUEST, AccessLog
from cartd.http.connection import LimitedChannel, lingering_close
from cartd.http.origins import ANY_HOST
from cartd.http.request import (
    REQUEST_ID,
    AuthResource,
    LimitedRequest,
    RequestChannel,
    RequestNormalizer,
    RequestSite,
    ValidatedRequest,
    serialize_error,
)
from cartd.http.request_limits import (
    EarlyResponse,
    Limits,
    RequestRules,
    TempFileLimit,
    setting_name,
)
from cartd.http.tls import ServerTls
from cartd.metrics import UNEXPOSED, Metrics
from cartd.tracing import LogContext

NO_HEADERS = Headers()
SENDER_TIMEOUT = 5.0
"""Seconds that a log line waits for the thread that sends to a client that has disconnected: its
call takes less, unless the disk hangs."""


class LimitedSite(Site, RequestSite):
    """The factory of the server's connections, which it can also close."""

    protocol: Any = LimitedChannel

    def __init__(
        self,
        routes: IResource,
        rules: RequestRules,
        reactor: Any,
        limits: Limits,
        authenticator: Authenticator | None = None,
        *,
        allowed_hosts: Collection[str] = (),
        allowed_origins: Collection[str] = (),
        request_id_peers: Sequence[Network] = (),
        public_url: str | None = None,
        threads: ThreadRunner,
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        """``rules``: the methods and access of the paths of ``routes``.

        ``allowed_hosts``: the allowed values of Host, beside that of ``public_url``, the URL of the
        service if it is known; with an ``authenticator`` any is allowed.  Pages of
        ``allowed_origins`` may send cross-origin requests.  The request ids that
        ``request_id_peers`` send are taken over.  ``threads`` write long bodies.
        """
        own = {urlsplit(public_url).hostname or ""} if public_url else set()
        rules = replace(
            rules,
            max_body=limits.max_manifest_size,
            allowed_hosts=frozenset(allowed_hosts) | own
            if authenticator is None
            else frozenset({ANY_HOST}),
            hosts_setting="[server] allowed_hosts",
            allowed_origins=frozenset(allowed_origins),
            origins_setting="[server] allowed_origins",
            problem_base=public_url or "",
        )
        super().__init__(
            RequestNormalizer(
                routes if authenticator is None else AuthResource(routes, authenticator, rules),
                rules,
            ),
            requestFactory=LimitedRequest,
            parsePOSTFormSubmission=False,  # any content type is a manifest
            reactor=reactor,
        )
        self.timeOut = None  # the channels have their own timeouts
        self._access_log = AccessLog(reactor)
        self._counts = RequestCounts(metrics)
        self._limits = limits
        self._rules = rules
        self._authenticator = authenticator
        self._request_id_peers = TrustedPeers(request_id_peers) if request_id_peers else None
        self._temp_file_limit = TempFileLimit(limits.temp_file_limit, threads)
        self._connection_limits = ConnectionLimits(
            limits.max_connections, limits.max_connections_per_address
        )
        self._overflow = OverflowFactory(reactor)
        self._connections: WeakSet[LimitedChannel | OverflowProtocol] = WeakSet()
        self._waiting_lines: set[Deferred[None]] = set()
        self._log_closed = False

    def startFactory(self) -> None:
        """Do nothing: Twisted would open its own access log and start a timer for its dates."""

    def log(self, request: Any) -> None:
        """Log a request whose response has ended."""
        request.logged = True
        code = request.code if request.startedWriting else CLIENT_CLOSED_REQUEST
        self._counts.count(request.method, code)
        if not request.access_logged:
            return
        self._access_log.log_request(
            request.getClientAddress(),
            "-" if request.authenticated_user is None else request.authenticated_user.name,
            b"%s %s %s" % (request.method, request.uri, request.clientproto),
            code,
            sent=request.bytes_sent,
            length=_length(request),
            headers=request.requestHeaders,
            seconds=request.seconds,
            context=request.log_context,
        )

    def log_disconnected(self, request: ValidatedRequest) -> None:
        """Log a request whose client has disconnected, once its number of bytes sent is exact.

        The thread that sends them may not have returned yet.  The line does not wait for it longer
        than ``SENDER_TIMEOUT``, nor beyond :meth:`close_log`.
        """
        if self._log_closed:
            self.log(request)
            return
        sent = request.wait_sent()
        self._waiting_lines.add(sent)

        def write(_: object) -> None:
            self._waiting_lines.discard(sent)
            self.log(request)

        sent.addTimeout(SENDER_TIMEOUT, self.reactor)
        sent.addBoth(write)

    def log_rejection(
        self, channel: RequestChannel, code: int, sent: int, context: LogContext
    ) -> None:
        """Log input rejected before it was a complete request, with ``sent`` bytes of body."""
        request = channel.requests[-1] if channel.requests else None
        if request is not None:
            request.logged = True
        self._counts.count(channel.request_line().partition(b" ")[0], code)
        self._access_log.log_request(
            channel.getPeer(),
            "-",
            channel.request_line(),
            code,
            sent=sent,
            length=b"%d" % sent,
            headers=NO_HEADERS if request is None else request.requestHeaders,
            seconds=0.0 if request is None else request.seconds,
            context=context,
        )

    @property
    def connections(self) -> int:
        """Open connections, without those over a limit."""
        return self._connection_limits.count

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols for ALPN: not HTTP/2, where limits and aborts would not work."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        limit = self._connection_limits.acquire(addr)
        connection = self._accept(addr) if limit is None else self._reject_connection(addr, limit)
        self._connections.add(connection)
        return connection

    def close_connections(self) -> None:
        """Close all connections; abort those on which a cart is being sent."""
        for connection in list(self._connections):
            connection.disconnect()

    def close_log(self) -> None:
        """Write the rest of the access log, and from now on each line at once.

        Call it after the threads that send have ended.
        """
        self._log_closed = True
        for sent in list(self._waiting_lines):
            sent.cancel()  # its callback writes the line
        self._access_log.close()

    def _accept(self, addr: IAddress | None) -> LimitedChannel:
        channel: Any = super().buildProtocol(addr)
        channel.limits = self._limits
        channel.rules = self._rules
        channel.authenticator = self._authenticator
        channel.request_id_peers = self._request_id_peers
        channel.temp_file_limit = self._temp_file_limit
        channel.on_disconnect = partial(self._connection_limits.release, addr)
        admitted: LimitedChannel = channel
        return admitted

    def _reject_connection(self, addr: IAddress | None, limit: str) -> OverflowProtocol:
        code, whose = (503, "") if limit == "max_connections" else (429, " from your address")
        self._counts.count_rejection(code)
        most = getattr(self._limits, limit)
        message = (
            f"The limit of {most} connections{whose} is reached ({setting_name(limit)});"
            " retry later"
        )
        context = LogContext()
        headers = [(REQUEST_ID, context.request_id.encode("ascii"))]
        return self._overflow.build_protocol(
            serialize_error(
                addr,
                EarlyResponse(code, message, setting_name(limit)),
                context=context,
                headers=headers,
            )
        )


KNOWN_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
}
"""The methods that metrics have by name; a client can choose any other."""


class RequestCounts:
    """Counts requests and rejections."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.requests
        self._rejections = metrics.rejections

    def count(self, method: bytes, code: int) -> None:
        """Count a request with this response."""
        self._requests.inc(KNOWN_METHODS.get(method, "other"), str(code))
        if code >= HTTPStatus.BAD_REQUEST:
            self.count_rejection(code)

    def count_rejection(self, code: int) -> None:
        """Count a rejection that is not counted as a request."""
        self._rejections.inc(str(code))


def _length(request: Any) -> bytes:
    """Return the declared length of the response body, ``-`` if unknown."""
    if request.method == b"HEAD" or request.code in NO_BODY_CODES:
        return b"-"
    # A chunked tar has its length only in the second.
    for name in (b"content-length", b"x-pacifica-tar-length"):
        if values := request.responseHeaders.getRawHeaders(name):
            length: bytes = values[0]
            return length
    return b"-"


IPV6_PREFIX = 64
"""Bits of an IPv6 address that identify a client.  It can choose the rest freely, even for each
connection (RFC 8981)."""


class ConnectionLimits:
    """Limits the number of open connections, in total and per client address."""

    def __init__(self, maximum: int, maximum_per_address: int) -> None:
        self._max = maximum
        self._max_per_address = maximum_per_address
        self.count = 0
        """Open connections."""
        self._per_address: Counter[str] = Counter()

    def acquire(self, address: IAddress | None) -> str | None:
        """Count one more connection, or return the name of the limit that it would exceed."""
        if self.count >= self._max:
            return "max_connections"
        counted = _counted_address(address)
        if counted is not None:
            if self._per_address[counted] >= self._max_per_address:
                return "max_connections_per_address"
            self._per_address[counted] += 1
        self.count += 1
        return None

    def release(self, address: IAddress | None) -> None:
        """Count one connection less, which :meth:`acquire` had counted."""
        self.count -= 1
        counted = _counted_address(address)
        if counted is not None:
            self._per_address[counted] -= 1
            if not self._per_address[counted]:
                del self._per_address[counted]


def _counted_address(address: IAddress | None) -> str | None:
    """Return what counts as one address; None if there is none, as on a Unix socket."""
    host: str | None = getattr(address, "host", None)
    if host is None or ":" not in host:
        return host
    numbers = IPv6Address(host)
    if numbers.ipv4_mapped is not None:
        return str(numbers.ipv4_mapped)
    return str(IPv6Network((numbers, IPV6_PREFIX), strict=False))


MAX_OVERFLOW_CONNECTIONS = 100
"""Connections over a limit that get a response, each an open file; others are aborted at once."""


class OverflowFactory:
    """Builds the protocols of connections over a limit."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._open: set[OverflowProtocol] = set()

    def build_protocol(self, answer: bytes) -> OverflowProtocol:
        return OverflowProtocol(answer, self._clock, self._open)


class OverflowProtocol(Protocol):
    """Sends ``answer`` to a connection over a limit, ignores all input, and closes."""

    transport: Any

    def __init__(
        self, answer: bytes, clock: IReactorTime, open_protocols: set[OverflowProtocol]
    ) -> None:
        self._answer = answer
        self._clock = clock
        self._open = open_protocols
        self._abort_call: IDelayedCall | None = None

    def connectionMade(self) -> None:
        if len(self._open) >= MAX_OVERFLOW_CONNECTIONS:
            self.transport.abortConnection()
            return
        self._open.add(self)
        self.transport.write(self._answer)
        self._abort_call = lingering_close(self.transport, self._clock.callLater)

    def disconnect(self) -> None:
        """Abort the connection."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._open.discard(self)
        if self._abort_call is not None and self._abort_call.active():
            self._abort_call.cancel()


def listen(
    reactor: Any, description: str, site: IProtocolFactory, *, umask: int
) -> tuple[IListeningPort, ServerTls | None]:
    """Bind one endpoint; return the port and, for TLS, the certificate for the caller to poll.

    Twisted's endpoints bind at once, so that a failure can stop the start.  ``umask`` restricts the
    mode of a Unix socket if the endpoint specifies none.

    :raises ConfigError: the endpoint is invalid, its certificate is unusable, or binding fails.
    """
    endpoint, tls = _endpoint(reactor, description, umask)
    outcome: list[IListeningPort | Failure] = []
    endpoint.listen(site).addBoth(outcome.append)
    [port] = outcome
    if isinstance(port, Failure):
        raise ConfigError(f"cannot listen on {description}: {_bind_error(port)}")
    return port, tls


def _bind_error(failure: Failure) -> str:
    error = getattr(failure.value, "socketError", failure.value)
    return (isinstance(error, OSError) and error.strerror) or failure.getErrorMessage()


def _endpoint(
    reactor: Any, description: str, umask: int
) -> tuple[IStreamServerEndpoint, ServerTls | None]:
    try:
        if is_unix(description):
            unix = parse_unix_endpoint(description.removeprefix("haproxy:"))
            endpoint = UnixSocketEndpoint(reactor, unix, umask)
            return (proxyEndpoint(endpoint) if description[0] == "h" else endpoint), None
        if not description.startswith("ssl:"):
            return serverFromString(reactor, description), None
        tls = ServerTls(parse_tls_endpoint(description))
    except ConfigError as error:
        raise ConfigError(f"cannot listen on {description}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{description} is not an endpoint: {error}") from error
    return tls.endpoint(reactor), tls


DEFAULT_MODE = 0o660
"""The mode of the socket if the endpoint specifies none, before the umask."""
LOCK_TIMEOUT = 5.0
"""Seconds to wait for another start, which holds the lock for milliseconds."""
POLL_INTERVAL = 0.02

_LISTENING = frozenset({0, errno.EAGAIN, errno.EINPROGRESS})
"""Results of connecting to a socket that a process listens on, even with a full backlog."""


@implementer(IStreamServerEndpoint)
class UnixSocketEndpoint:
    """Listens on a Unix socket as Twisted's endpoint does, but handles stale files and the mode.

    The file of a socket outlives the process that listened on it.  Whether a process still listens
    is determined by connecting; process ids would not help, as in a container every service has
    id 1.  There is no lock file, which could become stale as well.
    """

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
