"""Requests that a browser sends for a page of another site, and which of these a page may send.

A browser sends with them what authenticates its user, be it a remembered password or only the
place of the machine in the network.  Such a page may not change anything (cross-site request
forgery): the rule is that of ``CrossOriginProtection`` in Go's ``net/http``.  Clients that are no
browsers send none of these headers, and are not concerned.

What a page of a named origin may send and read is told to the browser by the headers of the Fetch
standard (CORS).  Credentials in its sense, cookies and remembered passwords, are not among it: a
page sends its user's token itself, in Authorization.
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
"""The fields that a page may send."""
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
"""The fields of an answer that a page may read, beside those that every page may."""
MAX_AGE = 600
"""Seconds for which a browser need not ask again what a page may send."""

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
"""They change nothing (RFC 9110, section 9.2.1)."""
_SAME_ORIGIN = frozenset({b"same-origin", b"none"})
"""Of a page of this very origin, or of the user, who has typed the address."""


def is_forbidden(
    method: bytes, host: bytes | None, headers: Headers, origins: Collection[str]
) -> bool:
    """Whether the request would change something for a page of another origin.

    ``origins`` are those whose pages may.
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
    """What an answer has for the pages of ``origins``; it goes with every answer, or with none."""
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
    """What the answer to OPTIONS has beside that, if a browser asks by it what a page may send."""
    asks = headers.hasHeader(b"access-control-request-method")
    if not asks or _allowed_origin(headers, origins) is None:
        return []
    return [
        (b"Access-Control-Allow-Methods", ", ".join(methods).encode()),
        (b"Access-Control-Allow-Headers", ", ".join(ALLOWED_HEADERS).encode()),
        (b"Access-Control-Max-Age", b"%d" % MAX_AGE),
    ]


def _allowed_origin(headers: Headers, origins: Collection[str]) -> bytes | None:
    """The origin of the page, if it is one of ``origins``."""
    sent = headers.getRawHeaders(b"origin", [])
    return sent[0] if len(sent) == 1 and sent[0].decode("latin-1") in origins else None


def _is_same_origin(origin: bytes, host: bytes | None) -> bool:
    """Whether an ``Origin`` is that of the host; ``null`` is of none (RFC 6454, section 7.3)."""
    try:
        netloc = urlsplit(origin.decode("ascii")).netloc
    except ValueError:
        return False
    return bool(netloc) and host is not None and netloc.lower() == host.decode().lower()
