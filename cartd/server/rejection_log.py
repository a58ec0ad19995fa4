"""The log of refused requests: a line of its own for each, which nobody can forge.

::

    Refused 404 192.0.2.7 "GET /guess" "The cart does not exist or has already been deleted"

That is the status, the address of the peer (``-`` if it has none), and two JSON strings: what was
asked for, and why it was refused.  Programs that shut out addresses read it (``contrib/fail2ban``).
"""

from __future__ import annotations

import json
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.logger import Logger

REJECTED_STATUSES = frozenset({400, 401, 404, 405, 408, 413, 429, 431})
"""What the client is to blame for.  A 503 is one too, if a limit has brought it about."""
BROWSER_PROBES = frozenset(
    b"/" + name
    for name in (
        b"favicon.ico",
        b"robots.txt",
        b"apple-touch-icon.png",
        b"apple-touch-icon-precomposed.png",
    )
)
"""What browsers and their kin ask of each site by themselves: that it is not there is no guess."""
MAX_TEXT = 200
"""Characters that are told of what was asked for, and of the reason: lines must be no flood."""

log = Logger()


def log_rejection(
    code: int,
    message: str,
    limit: str | None,
    *,
    peer: Any,
    method: bytes = b"",
    target: bytes = b"",
) -> None:
    """Log the answer ``code`` if it is a refusal; other answers are passed over.

    ``peer`` is an address of Twisted's; ``method`` and ``target`` are as the client has sent them.
    """
    if code == 404 and target.partition(b"?")[0] in BROWSER_PROBES:
        return
    if code in REJECTED_STATUSES or (code == 503 and limit is not None):
        request_line = b"%s %s" % (method, target) if method else b""
        # All that a client chooses stands behind its address.
        log.info(
            "Refused {code} {address} {request_line} {reason}",
            code=code,
            address=client_address(peer),
            request_line=_quoted(request_line.decode("latin-1")),
            reason=_quoted(message),
        )


def client_address(peer: Any) -> str:
    """The IP address, or ``-``; a proxy in front (``haproxy:``) may have told anything for one."""
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
    """A JSON string in printable ASCII."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}..."
    return json.dumps(text)
