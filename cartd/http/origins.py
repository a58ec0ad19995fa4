"""Pages of other sites: protection against forgery (CSRF) and DNS rebinding, and CORS headers.

A browser sends a request of a foreign page with its user's remembered password and from its user's
network.  Such a request must not change anything (cross-site request forgery).  The rule is that
of ``CrossOriginProtection`` in Go's ``net/http``.  Clients that are not browsers send none of these
headers and are not affected.

The forms of the service's own pages have a token, too (:mod:`cartd.http.form_tokens`).

Pages of allowed origins may read responses: browsers get the CORS headers of the Fetch standard,
without ``Access-Control-Allow-Credentials``.  A page sends its user's token in Authorization.

A foreign page can have its own host name resolve to the address of this service after it was
loaded; the browser then treats both as the same origin (DNS rebinding), but still sends that name
in Host.  Without authentication the service therefore accepts only names that no foreign page can
have: IP addresses, localhost, and the names that its administrator has configured.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

from cartd.errors import InvalidInput

ALLOWED_HEADERS = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "X-Request-ID",
    "traceparent",
)
"""Request headers that a page of an allowed origin may send."""
EXPOSED_HEADERS = (
    "Accept-Encoding",
    "Accept-Ranges",
    "Allow",
    "Content-Disposition",
    "Content-Range",
    "Date",
    "ETag",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Pacifica-Bytes-Staged",
    "X-Pacifica-Bytes-Total",
    "X-Pacifica-Files-Failed",
    "X-Pacifica-Files-Staged",
    "X-Pacifica-Files-Total",
    "X-Pacifica-Message",
    "X-Pacifica-Phase",
    "X-Pacifica-Status",
    "X-Pacifica-Tar-Length",
    "X-Request-ID",
)
"""Response headers that a page of an allowed origin may read, beside the safelisted ones."""
MAX_AGE = 600
"""Seconds for which a browser may cache a preflight response."""

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
"""Methods that change nothing (RFC 9110, section 9.2.1)."""
_SAME_ORIGIN = frozenset({b"same-origin", b"none"})
"""Values of Sec-Fetch-Site for a page of this origin, or for an address the user typed."""


def is_forbidden(
    method: bytes, host: bytes | None, headers: Headers, origins: Collection[str]
) -> bool:
    """Return whether the request would change something for a page of another origin.

    Pages of ``origins`` may.
    """
    if method in _SAFE:
        return False
    sent = headers.getRawHeaders(b"origin", [])
    if sent and all(origin.decode("latin-1") in origins for origin in sent):
        return False
    sites = headers.getRawHeaders(b"sec-fetch-site", [])
    if sites:
        return any(site not in _SAME_ORIGIN for site in sites)
    return any(not _is_same_origin(origin, host) for origin in sent)


def cors_headers(headers: Headers, origins: Collection[str]) -> list[tuple[bytes, bytes]]:
    """Return the CORS headers that every response has if there are allowed ``origins``."""
    if not origins:
        return []
    origin = _allowed_origin(headers, origins)
    if origin is None:
        return [(b"Vary", b"Origin")]
    return [
        (b"Vary", b"Origin"),
        (b"Access-Control-Allow-Origin", origin),
        (b"Access-Control-Expose-Headers", ", ".join(EXPOSED_HEADERS).encode()),
    ]


def preflight_headers(
    headers: Headers, origins: Collection[str], methods: Sequence[str]
) -> list[tuple[bytes, bytes]]:
    """Return the further headers of a response to OPTIONS, if it is a preflight request."""
    is_preflight = headers.hasHeader(b"access-control-request-method")
    if not is_preflight or _allowed_origin(headers, origins) is None:
        return []
    return [
        (b"Access-Control-Allow-Methods", ", ".join(methods).encode()),
        (b"Access-Control-Allow-Headers", ", ".join(ALLOWED_HEADERS).encode()),
        (b"Access-Control-Max-Age", b"%d" % MAX_AGE),
    ]


def _allowed_origin(headers: Headers, origins: Collection[str]) -> bytes | None:
    """Return the origin of the page if it is one of ``origins``."""
    sent = headers.getRawHeaders(b"origin", [])
    return sent[0] if len(sent) == 1 and sent[0].decode("latin-1") in origins else None


def _is_same_origin(origin: bytes, host: bytes | None) -> bool:
    """Return whether ``origin`` has this host; ``null`` has none (RFC 6454, section 7.3)."""
    try:
        netloc = urlsplit(origin.decode("ascii")).netloc
    except ValueError:
        return False
    return bool(netloc) and host is not None and netloc.lower() == host.decode().lower()


ANY_HOST = "*"
"""In the set of allowed names: any host is allowed."""
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]*)?")
"""Host and port (RFC 3986, section 3.2.2), not empty (RFC 9110, section 4.2.1)."""
AUTHORITY = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
"""Scheme and host of a target in absolute form (RFC 9112, section 3.2.2)."""


def request_host(target: bytes, version: bytes, values: Sequence[bytes]) -> bytes | None:
    """Return host and port of the request; None for HTTP/1.0 without them.

    A target in absolute form takes precedence over the header, whose ``values`` must be valid
    nevertheless (RFC 9112, sections 3.2 and 3.2.2).

    :raises InvalidInput: Host is missing, repeated or invalid.
    """
    if len(values) > 1:
        raise InvalidInput("More than one Host header")
    if not values and version != b"HTTP/1.0":
        raise InvalidInput("The Host header is missing")
    authority = AUTHORITY.match(target)
    for host in [*values, *([authority[1]] if authority else [])]:
        if not _HOST.fullmatch(host):
            raise InvalidInput("The Host header, or the host in the target, is invalid")
    if authority:
        return authority[1]
    return values[0] if values else None


@lru_cache(maxsize=1024)
def is_allowed_host(host: bytes, names: frozenset[str]) -> bool:
    """Return whether ``host``, with or without a port, is an address, localhost or in ``names``."""
    matched = _HOST.fullmatch(host)
    name = matched[1].decode("ascii").lower() if matched else ""
    if ANY_HOST in names or name in names:
        return True
    name = name.removesuffix(".")
    return name in names or name == "localhost" or name.endswith(".localhost") or _is_ip(name)


def _is_ip(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
