"""The header Host: whether it is one, and whether the service may be asked by that name.

A page from anywhere can have its own name resolved to the address of this service once it is
loaded, and is then, for the browser, of the same site (DNS rebinding).  The browser still sends
that name.  So a service that lets everybody who reaches it do everything answers only to names
that nobody else can have: IP addresses, localhost, and those that its administrator has named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

from cartd.errors import InvalidInput

ANY_HOST = "*"
"""Among the names: all do."""
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]*)?")
"""A host and a port (RFC 3986, section 3.2.2); HTTP has no empty one (RFC 9110, section 4.2.1)."""
AUTHORITY = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
"""Of a target that names the host, too (RFC 9112, section 3.2.2)."""


def request_host(target: bytes, version: bytes, values: Sequence[bytes]) -> bytes | None:
    """Host and port that the request is for; None if a client of HTTP/1.0 does not say.

    A target that names them counts before the header, whose ``values`` must be right all the same
    (RFC 9112, sections 3.2 and 3.2.2).

    :raises InvalidInput: they are none, two, or no host.
    """
    if len(values) > 1:
        raise InvalidInput("There is more than one header Host")
    if not values and version != b"HTTP/1.0":
        raise InvalidInput("There is no header Host")
    authority = AUTHORITY.match(target)
    for host in [*values, *([authority[1]] if authority else [])]:
        if not _HOST.fullmatch(host):
            raise InvalidInput("The header Host, or the target's, is no host")
    if authority:
        return authority[1]
    return values[0] if values else None


@lru_cache(maxsize=1024)
def is_allowed_host(host: bytes, names: frozenset[str]) -> bool:
    """Whether ``host``, with a port or without, is safe to be asked by, or one of ``names``."""
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
