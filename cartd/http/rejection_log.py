"""The rejection log: one line per rejected request, which clients cannot forge.

::

    Refused 404 192.0.2.7 "GET /guess" "The cart does not exist or has already been deleted"

Status, address of the peer (``-`` if it has none), and two JSON strings: the request and the
reason.  The filters of ``contrib/fail2ban`` match these lines.
"""

from __future__ import annotations

import json
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.logger import Logger

REJECTED_STATUSES = frozenset({400, 401, 404, 405, 408, 413, 429, 431})
"""Statuses logged as rejections; 503 is, too, if it is caused by a limit."""
BROWSER_PROBES = frozenset(
    b"/" + name
    for name in (
        b"favicon.ico",
        b"robots.txt",
        b"apple-touch-icon.png",
        b"apple-touch-icon-precomposed.png",
    )
)
"""Paths that browsers request by themselves: a 404 for them is no guessed uid."""
MAX_TEXT = 200
"""Maximum characters logged of the request and of the reason."""

log = Logger(namespace="cartd.rejection_log")  # contrib/fail2ban matches it


def log_rejection(
    code: int,
    message: str,
    limit: str | None,
    *,
    peer: Any,
    method: bytes = b"",
    target: bytes = b"",
) -> None:
    """Log a response with status ``code`` if that counts as a rejection.

    ``peer`` is a Twisted address; ``method`` and ``target`` are as received.
    """
    if code == 404 and target.partition(b"?")[0] in BROWSER_PROBES:
        return
    if code in REJECTED_STATUSES or (code == 503 and limit is not None):
        request_line = b"%s %s" % (method, target) if method else b""
        # Text chosen by the client comes after its address, so that it cannot forge one.
        log.info(
            "Refused {code} {address} {request_line} {reason}",
            code=code,
            address=client_address(peer),
            request_line=_quoted(request_line.decode("latin-1")),
            reason=_quoted(message),
        )


def client_address(peer: Any) -> str:
    """Return the IP address, or ``-``; with ``haproxy:``, a proxy may have sent any text for it."""
    return _canonical_address(getattr(peer, "host", ""))


@lru_cache(maxsize=1024)
def _canonical_address(host: str) -> str:
    host, _, _ = host.partition("%")
    try:
        address = ip_address(host)
    except ValueError:
        return "-"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _quoted(text: str) -> str:
    """Return a JSON string in printable ASCII."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}..."
    return json.dumps(text)
