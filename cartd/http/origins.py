"""Cross-origin requests of browsers: protection against forgery (CSRF), and CORS headers.

A browser sends a request of a foreign page with its user's remembered password and from its user's
network.  Such a request must not change anything (cross-site request forgery).  The rule is that
of ``CrossOriginProtection`` in Go's ``net/http``.  Clients that are not browsers send none of these
headers and are not affected.

Pages of allowed origins may read responses: browsers get the CORS headers of the Fetch standard,
without ``Access-Control-Allow-Credentials``.  A page sends its user's token in Authorization.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

ALLOWED_HEADERS = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Range",
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
    "Retry-After",
    "WWW-Authenticate",
    "X-Pacifica-Bytes-Staged",
    "X-Pacifica-Bytes-Total",
    "X-Pacifica-Files-Staged",
    "X-Pacifica-Files-Total",
    "X-Pacifica-Message",
    "X-Pacifica-Phase",
    "X-Pacifica-Status",
    "X-Pacifica-Tar-Length",
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
