"""What the head of a request decides, before any of its body is asked for.

One function, :func:`validate_head`, for everything that method, target and headers tell by
themselves.  A server must not send ``100 Continue`` where it can give the final answer already
(RFC 9110, section 10.1.1), and a client should not have to send 100 MB to be told that its method
is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote_to_bytes

from twisted.web.http_headers import Headers

from cartd.errors import CartdError, InvalidInput
from cartd.server import cross_origin, host_header
from cartd.server.limits import setting_name

OPTIONS = b"OPTIONS"
_IDENTITY_CODINGS = frozenset({b"", b"identity"})
"""The content codings in which a body is taken (RFC 9110, section 8.4)."""


@dataclass(frozen=True)
class RequestHead:
    """As the client has sent it."""

    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    length: int | None = 0
    """Bytes of the body; None: it comes in chunks."""

    @cached_property
    def segments(self) -> list[bytes]:
        """As :func:`path_segments`."""
        return path_segments(self.target)


@dataclass(frozen=True, slots=True)
class EarlyResponse:
    """The final answer: an error, or to OPTIONS 204 without a body."""

    code: int
    message: str = ""
    limit: str | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What a service takes."""

    methods: Callable[[Sequence[str]], Sequence[str]]
    """Those of a path, given as its segments; none where there is no such path."""
    all_methods: Sequence[str]
    """Those that the service knows at all."""
    max_body: int | None = None
    """Bytes; None: any number."""
    length_required: Collection[bytes] = ()
    """The methods whose body must have a Content-Length (RFC 9110, section 15.5.12)."""
    check_post: Callable[[Sequence[str]], object] | None = None
    """Raises :class:`cartd.errors.CartdError` if nothing may be posted to that path."""
    allowed_hosts: frozenset[str] = frozenset()
    """The names by which it may be asked, beside its addresses and localhost."""
    hosts_setting: str = ""
    """Where they are set."""
    allowed_origins: Collection[str] = ()
    """Those whose pages may change something."""
    origins_setting: str = ""


def path_segments(target: bytes) -> list[bytes]:
    """The decoded segments of the target's path.

    :raises InvalidInput: it is no path, or not text.
    """
    path = target.partition(b"?")[0]
    if host := host_header.AUTHORITY.match(path):
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
    """A path as the routes take it: an encoded slash is one, empty segments count for nothing."""
    return [name for name in b"/".join(segments).decode().split("/") if name]


def validate_head(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    """The answer, if it can be given now; None if the request is to be read and served."""
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
    """Where the body ends, if there is one."""
    codings = head.headers.getRawHeaders(b"transfer-encoding", [])
    if codings and head.version == b"HTTP/1.0":
        # RFC 9112, section 6.1: who sends that may have been misread on the way.
        raise InvalidInput("HTTP/1.0 has no Transfer-Encoding")
    if any(coding.lower() != b"chunked" for coding in codings):
        return EarlyResponse(501, "The only transfer coding that is known here is chunked")
    return None


def _check_origin(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    """By which name it is asked, and for a page of which site."""
    host = host_header.request_host(
        head.target, head.version, head.headers.getRawHeaders(b"host", [])
    )
    # Without a name it is no browser, which alone can be led here.
    if host is not None and not host_header.is_allowed_host(host, rules.allowed_hosts):
        return EarlyResponse(
            421,
            f"This service does not know itself as {host.decode()[:100]}: without authentication it"
            f" answers to its addresses, to localhost and to the names in {rules.hosts_setting}",
        )
    if cross_origin.is_forbidden(head.method, host, head.headers, rules.allowed_origins):
        return EarlyResponse(
            403,
            f"A page of another site may not change anything here, unless {rules.origins_setting}"
            " names it; a proxy in front must pass the header Host on",
        )
    return None


def _check_method(head: RequestHead, rules: RequestRules) -> EarlyResponse | None:
    """Whether there is such a method at such a place."""
    if head.method != head.method.upper():
        # Klein would take it for that method (RFC 9110, section 9.1).
        raise InvalidInput("The method is not written in capitals")
    if head.method == OPTIONS and head.target == b"*":
        return _options_response(head, rules, rules.all_methods)
    path = route_path(head.segments)
    methods = rules.methods(path)
    if head.method == OPTIONS:
        return _options_response(head, rules, methods)
    if not methods:
        return EarlyResponse(404, "Not Found")
    if head.method.decode("latin-1") not in methods:
        return EarlyResponse(405, "This method is not known here", headers=[_allow_header(methods)])
    if head.method == b"POST" and rules.check_post is not None:
        rules.check_post(path)
    return None


def _options_response(
    head: RequestHead, rules: RequestRules, methods: Sequence[str]
) -> EarlyResponse:
    """RFC 9110, section 9.3.7: balancers and browsers ask so, and before they say who they are."""
    cors = cross_origin.preflight_headers(head.headers, rules.allowed_origins, methods)
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
                "A body with a Content-Encoding is not decoded here: send it as it is,"
                " without that header",
                headers=[(b"Accept-Encoding", b"identity")],
            )
    if head.length is None and head.method in rules.length_required:
        return EarlyResponse(411, "This method needs a Content-Length")
    if rules.max_body is not None and head.length is not None and head.length > rules.max_body:
        limit = setting_name("max_manifest_size")
        return EarlyResponse(413, f"The body is over {rules.max_body} bytes ({limit})", limit)
    return None
