"""What a request may be: the limits of the server, the rules for its head, and its body.

:func:`validate_head` makes all checks for which method, target and headers suffice.  A server must
not send ``100 Continue`` if it can send the final response already (RFC 9110, section 10.1.1), and
a client should not have to send 100 MB to learn that its method is not allowed.

:class:`SpooledBody` limits what a body occupies: a short one stays in memory, a long one is spooled
to a temporary file, within the :class:`TempFileLimit` of all requests.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from io import BytesIO
from typing import IO, Final
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from cartd.config import Config
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import CartdError, InvalidInput, Problem
from cartd.http import origins


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the HTTP server, by the names of their settings.

    Sizes are bytes, times are seconds.
    """

    max_manifest_size: int
    temp_file_limit: int
    max_header_size: int
    max_headers: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    keepalive_timeout: float
    stall_timeout: float
    max_connections: int
    max_connections_per_address: int

    @classmethod
    def of(cls, config: Config) -> Limits:
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def setting_name(limit: str) -> str:
    """Return the name of a limit's setting, for error messages."""
    return f"server.{limit}"


OPTIONS = b"OPTIONS"
_IDENTITY_CODINGS = frozenset({b"", b"identity"})
"""The accepted content codings of a body (RFC 9110, section 8.4)."""


@dataclass(frozen=True)
class RequestHead:
    """The head of a request as received."""

    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    length: int | None = 0
    """Bytes of the body; None if it is chunked."""

    @cached_property
    def segments(self) -> list[bytes]:
        """See :func:`path_segments`."""
        return path_segments(self.target)


@dataclass(frozen=True, slots=True)
class EarlyResponse:
    """The final response: an error, or 204 to OPTIONS."""

    code: int
    message: str = ""
    limit: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    logged: bool = True
    """Whether the rejection log gets a line."""
    problem: Problem | None = None
    """None: it follows from the status and the limit."""

    @classmethod
    def of(
        cls,
        error: CartdError,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        logged: bool = True,
    ) -> EarlyResponse:
        """Return the response for an error."""
        return cls(error.code, str(error), error.limit, headers, logged, error.problem)


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What requests a service accepts."""

    methods: Callable[[Sequence[str]], Sequence[str]]
    """Returns the methods of a path, given as its segments; empty for an unknown path."""
    all_methods: Sequence[str]
    """All methods of the service."""
    max_body: int | None = None
    """Maximum bytes of a body; None for no limit."""
    length_required: Collection[bytes] = ()
    """The methods whose body must have a Content-Length (RFC 9110, section 15.5.12)."""
    is_public: Callable[[bytes, Sequence[str]], bool] = lambda method, path: False
    """Returns whether a request with this method and path needs no authentication."""
    check_post: Callable[[Sequence[str]], object] | None = None
    """Raises :class:`cartd.errors.CartdError` if a path cannot be posted to."""
    allowed_hosts: frozenset[str] = frozenset()
    """Allowed values of Host, beside IP addresses and localhost."""
    hosts_setting: str = ""
    """The setting of ``allowed_hosts``, for error messages."""
    allowed_origins: Collection[str] = ()
    """Allowed origins of cross-origin requests."""
    origins_setting: str = ""
    """The setting of ``allowed_origins``, for error messages."""
    problem_base: str | None = None
    """The URL before the paths of the problem pages; empty for relative URLs, None without pages:
    then errors are never problem details (:mod:`cartd.http.problems`)."""


def path_segments(target: bytes) -> list[bytes]:
    """Return the decoded segments of the target's path.

    :raises InvalidInput: it is not a path, or not UTF-8.
    """
    path = target.partition(b"?")[0]
    if host := origins.AUTHORITY.match(path):
        path = path[host.end() :] or b"/"
    if not path.startswith(b"/"):
        raise InvalidInput("The path does not begin with /")
    segments = path[1:].split(b"/")
    if b"%" in path:
        segments = [unquote_to_bytes(segment) for segment in segments]
    try:
        b"/".join(segments).decode()
    except UnicodeDecodeError:
        raise InvalidInput("The path is not UTF-8") from None
    return segments


def route_path(segments: Sequence[bytes]) -> list[str]:
    """Return the path as the routes see it: encoded slashes split, empty segments are dropped."""
    return [name for name in b"/".join(segments).decode().split("/") if name]


def validate_head(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    """Return the final response if the head suffices for it; None if the request is acceptable."""
    try:
        return (
            _check_framing(head)
            or _check_origin(head, rules)
            or _check_method(head, rules)
            or _check_body(head, rules)
        )
    except CartdError as error:
        return EarlyResponse.of(error)


def _check_framing(head: RequestHead) -> EarlyResponse | None:
    """Check that the end of the body is unambiguous."""
    codings = head.headers.getRawHeaders(b"transfer-encoding", [])
    if codings and head.version == b"HTTP/1.0":
        # RFC 9112, section 6.1: proxies may have misread such a message.
        raise InvalidInput("Transfer-Encoding is not allowed in HTTP/1.0")
    if any(coding.lower() != b"chunked" for coding in codings):
        return EarlyResponse(501, "The only supported transfer coding is chunked")
    return None


def _check_origin(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    """Check the Host header (DNS rebinding) and the origin (CSRF)."""
    host = origins.request_host(head.target, head.version, head.headers.getRawHeaders(b"host", []))
    # A request without Host is not from a browser, so DNS rebinding is impossible.
    if host is not None and not origins.is_allowed_host(host, rules.allowed_hosts):
        return EarlyResponse(
            421,
            f"Unknown host {host.decode()[:100]}: without authentication only IP addresses,"
            f" localhost and the names in {rules.hosts_setting} are allowed",
        )
    if origins.is_forbidden(head.method, host, head.headers, rules.allowed_origins):
        return EarlyResponse(
            403,
            f"Cross-origin changes are forbidden: add the origin to {rules.origins_setting}; if the"
            " origin is the service's own, let the proxy forward the Host header",
            problem=Problem.CROSS_SITE,
        )
    return None


def _check_method(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    """Check path and method."""
    if head.method != head.method.upper():
        # Methods are case-sensitive (RFC 9110, section 9.1), but not for Klein.
        raise InvalidInput("The method must be in upper case")
    if head.method == OPTIONS and head.target == b"*":
        return _options_response(head, rules, rules.all_methods)
    path = route_path(head.segments)
    methods = rules.methods(path)
    if head.method == OPTIONS and "OPTIONS" not in methods:
        return _options_response(head, rules, methods)
    if not methods:
        return EarlyResponse(404, "Not Found")
    if head.method.decode("latin-1") not in methods:
        return EarlyResponse(405, "Method not allowed", headers=[_allow_header(methods)])
    if head.method == b"POST" and rules.check_post is not None:
        rules.check_post(path)
    return None


def _options_response(
    head: RequestHead, rules: RequestRules, methods: Sequence[str]
) -> EarlyResponse:
    """Return the response to OPTIONS (RFC 9110, section 9.3.7), which needs no authentication."""
    cors = origins.preflight_headers(head.headers, rules.allowed_origins, methods)
    return EarlyResponse(204, headers=[_allow_header(methods), *cors])


def _allow_header(methods: Sequence[str]) -> tuple[bytes, bytes]:
    return b"Allow", ", ".join(sorted({*methods, "OPTIONS"})).encode()


def _check_body(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    if head.length == 0:
        return None
    for codings in head.headers.getRawHeaders(b"content-encoding", []):
        if any(coding.strip().lower() not in _IDENTITY_CODINGS for coding in codings.split(b",")):
            return EarlyResponse(
                415,
                "Content-Encoding is not supported: send the body unencoded, without that header",
                headers=[(b"Accept-Encoding", b"identity")],
            )
    if head.length is None and head.method in rules.length_required:
        return EarlyResponse(411, "This method requires Content-Length")
    if rules.max_body is not None and head.length is not None and head.length > rules.max_body:
        limit = setting_name("max_manifest_size")
        return EarlyResponse(413, f"The body exceeds {rules.max_body} bytes ({limit})", limit)
    return None


MAX_IN_MEMORY: Final = 16 * 2**10
"""Maximum bytes of a body kept in memory, and minimum bytes of a batch for a thread.  Small, as
thousands of clients may send bodies at a time."""
HIGH_WATER: Final = 64 * 2**10
"""Bytes collected while a thread is busy at which the client is paused."""


class TempFileLimit:
    """Limits the temporary files of all current requests to ``limit`` bytes in total.

    A larger body is accepted if it is the only one.
    """

    def __init__(self, limit: int, threads: ThreadRunner) -> None:
        self.limit = limit
        self.threads = threads
        self.used = 0

    def reserve(self, size: int, own: int = 0) -> bool:
        """Reserve ``size`` bytes beside the ``own`` of a body; return False without space."""
        if self.used > own and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        self.used -= size


class SpooledBody:
    """One body: written by the reactor and, when it is complete, read by a worker thread.

    The reactor collects chunks; once they are large enough, a thread writes them to a temporary
    file, one batch at a time, so that their order needs no queue.  Chunks received meanwhile are
    collected, and above a high-water mark the client is paused.  A slow client occupies no thread.

    ``pause(True)`` is called when the caller should stop writing, ``pause(False)`` when it may
    continue, and ``failed`` once if the disk reports an error.
    """

    def __init__(
        self,
        space: TempFileLimit,
        pause: Callable[[bool], object],
        failed: Callable[[OSError], object],
    ) -> None:
        self._space = space
        self._pause = pause
        self._on_error = failed
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._size = 0
        self._reserved = 0
        self._on_disk = False
        self._busy = False
        self._paused = False
        self._closed = False
        self._finished: Deferred[None] | None = None
        # Shared with threads, under the lock.
        self._lock = threading.Lock()
        self._file: IO[bytes] = BytesIO()
        self._in_use = False
        self._discarded = False

    def reserve(self, length: int) -> bool:
        """Reserve space for the declared ``length``; return False if there is none."""
        return length <= MAX_IN_MEMORY or self._reserve(length)

    def write(self, data: bytes) -> bool:
        """Append ``data``; return False, without appending, if there is no space."""
        size = self._size + len(data)
        if size > max(self._reserved, MAX_IN_MEMORY) and not self._reserve(size - self._reserved):
            return False
        self._size = size
        self._pending.append(data)
        self._pending_size += len(data)
        if self._size > MAX_IN_MEMORY and self._pending_size >= MAX_IN_MEMORY:
            self._flush()
        if self._busy and self._pending_size >= HIGH_WATER:
            # Repeatedly, as a connection that becomes writable resumes reading.
            self._paused = True
            self._pause(True)
        return True

    def finish(self) -> Deferred[None] | None:
        """End the body; return a Deferred that fires when it can be read, None if it can already.

        The Deferred never fires if the disk reports an error or the body is closed before.
        """
        if self._size <= MAX_IN_MEMORY:
            self._file = BytesIO(b"".join(self._pending))
            self._file.seek(0, os.SEEK_END)
            return None
        self._flush()
        if self._busy:
            self._finished = Deferred()
        return self._finished

    # The interface of a file, for its reader.

    def read(self) -> bytes:
        """Return the rest of the body; blocks.  Raises ``ValueError`` if it is closed."""
        with self._file_in_use() as is_open:
            if not is_open:
                raise ValueError("the body is closed")
            return self._file.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """Release memory, file and reserved space.  Idempotent, may be called at any time."""
        if self._closed:
            return
        self._closed = True
        self._pending.clear()
        if self._on_disk:
            self._space.threads.run(self._discard).addCallback(self._release_space)
        else:
            self._discard()  # of memory alone
            self._release_space(None)

    def _release_space(self, _: None) -> None:
        self._space.release(self._reserved)

    def _reserve(self, size: int) -> bool:
        if not self._space.reserve(size, own=self._reserved):
            return False
        self._reserved += size
        return True

    def _flush(self) -> None:
        if self._busy or self._closed or not self._pending:
            return
        chunks, self._pending, self._pending_size = self._pending, [], 0
        self._busy = self._on_disk = True
        job = self._space.threads.run(self._append, chunks)
        job.addCallbacks(self._on_flushed, self._on_flush_error)

    def _on_flushed(self, _: None) -> None:
        self._busy = False
        if self._closed:
            return
        if self._pending_size >= MAX_IN_MEMORY or self._finished is not None:
            self._flush()
        if self._paused and self._pending_size < HIGH_WATER and self._finished is None:
            self._paused = False
            self._pause(False)
        if self._finished is not None and not self._busy:
            finished, self._finished = self._finished, None
            finished.callback(None)

    def _on_flush_error(self, failure: Failure) -> None:
        self._busy = False
        error = failure.value
        if self._closed:
            return
        self.close()
        if not isinstance(error, OSError):
            failure.raiseException()
        self._on_error(error)

    # The following methods run in threads.

    def _append(self, chunks: list[bytes]) -> None:
        with self._file_in_use() as is_open:
            if not is_open:
                return
            if isinstance(self._file, BytesIO):
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            left = memoryview(b"".join(chunks))
            while left:
                left = left[self._file.write(left) :]

    @contextmanager
    def _file_in_use(self) -> Iterator[bool]:
        """Yield whether the file is open; it stays open while the block runs."""
        with self._lock:
            is_open = self._in_use = not self._discarded
        try:
            yield is_open
        finally:
            with self._lock:
                self._in_use = False
                close = is_open and self._discarded
            if close:
                self._close_file()

    def _discard(self) -> None:
        with self._lock:
            self._discarded = True
            if self._in_use:
                return  # its user closes it
        self._close_file()

    def _close_file(self) -> None:
        with suppress(OSError):
            self._file.close()
