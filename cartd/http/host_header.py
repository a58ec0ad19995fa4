"""The Host header: validation, and protection against DNS rebinding.

A foreign page can have its own host name resolve to the address of this service after it was
loaded; the browser then treats both as the same origin (DNS rebinding), but still sends that name
in Host.  Without authentication the service therefore accepts only names that no foreign page can
have: IP addresses, localhost, and the names that its administrator has configured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

from cartd.errors import InvalidInput

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
