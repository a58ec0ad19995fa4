"""Validation of a request's head, before its body is received.

:func:`validate_head` makes all checks for which method, target and headers suffice.  A server must
not send ``100 Continue`` if it can send the final response already (RFC 9110, section 10.1.1), and
a client should not have to send 100 MB to learn that its method is not allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote_to_bytes

from twisted.web.http_headers import Headers

from cartd.errors import CartdError, InvalidInput
from cartd.http import origins
from cartd.http.limits import setting_name

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
        return EarlyResponse(error.code, str(error), error.limit)


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
    if head.method == OPTIONS:
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
