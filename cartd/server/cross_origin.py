"""Requests that a browser sends for a page of another site.

A browser sends with them what authenticates its user, be it a remembered password or only the
place of the machine in the network.  Such a page may not change anything (cross-site request
forgery): the rule is that of ``CrossOriginProtection`` in Go's ``net/http``.  Clients that are no
browsers send none of these headers, and are not concerned.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
"""They change nothing (RFC 9110, section 9.2.1)."""
_OWN = frozenset({b"same-origin", b"none"})
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
        return any(site not in _OWN for site in sites)
    return any(not _is_of(origin, host) for origin in sent)


def _is_of(origin: bytes, host: bytes | None) -> bool:
    """Whether an ``Origin`` is that of the host; ``null`` is of none (RFC 6454, section 7.3)."""
    try:
        netloc = urlsplit(origin.decode("ascii")).netloc
    except ValueError:
        return False
    return bool(netloc) and host is not None and netloc.lower() == host.decode().lower()
