"""One request as it goes over the wire: validated, and rendered once.

Strategy: everything sent was matched against its grammar, so that no method, URI or header can end
its line early and begin a second request (request smuggling, RFC 9112, section 11.2).  The fields
for framing and the host are written here; a caller cannot set them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from twisted.web.http_headers import Headers
from twisted.web.iweb import IClientRequest
from zope.interface import implementer

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110, section 5.6.2)."""

_URI = re.compile(rb'(https?://[!-"$-.0->@-~]+)([!-"$-~]*)(?:#[!-~]*)?')
"""Scheme and authority; path and query; a fragment, which is not sent.  Visible ASCII only."""

_LABEL = rb"[0-9A-Za-z_-]{1,63}"
_ORIGIN = re.compile(
    rb"(https?)://(\[[0-9A-Fa-f:.]+\]|%b(?:\.%b)*\.?)(?::([0-9]{0,5}))?" % (_LABEL, _LABEL)
)
"""A user before the host does not match, either: it would be a secret in the wrong place."""

_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
"""A field's value without the control characters (RFC 9110, section 5.5)."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_RESERVED_FIELDS: Final = frozenset(
    name.encode()
    for name in (
        "Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Connection", "TE",
        "Trailer", "Transfer-Encoding", "Upgrade",
    )
)  # fmt: skip
"""Fields of the connection and of framing, which a caller may not set."""

_SAFE_METHODS: Final = frozenset({b"GET", b"HEAD"})
_METHODS_WITH_BODY: Final = frozenset({b"PATCH", b"POST", b"PUT"})


class Origin(NamedTuple):
    """Scheme, host and port: connections to the same origin are interchangeable."""

    scheme: str
    host: str
    """A name or an address; one of IPv6 without its brackets."""
    port: int
    authority: bytes
    """The value of ``Host`` (RFC 9110, section 7.2)."""


@implementer(IClientRequest)
class Request:
    """A request without a body; raises ``ValueError`` if HTTP/1.1 cannot express it.

    ``Accept-Encoding`` is always ``identity``; a caller's value is ignored.
    """

    __slots__ = ("absoluteURI", "head", "headers", "method", "origin", "retryable")

    def __init__(self, method: bytes, uri: bytes, headers: Headers) -> None:
        parts = _URI.fullmatch(uri)
        if parts is None:
            raise ValueError(f"not an absolute http: or https: URI of visible ASCII: {uri!r}")
        if not _METHOD.fullmatch(method) or method == b"CONNECT":
            raise ValueError(f"not a method for a URI: {method!r}")
        base, target = parts.groups()
        if target[:1] != b"/":
            target = b"/" + target
        self.method = method
        self.absoluteURI = uri
        self.headers = headers
        self.origin = _origin(base)
        self.retryable = method in _SAFE_METHODS
        """Whether it may be repeated if it is unknown whether it arrived (RFC 9110, 9.2.2)."""
        self.head = b"%b %b HTTP/1.1\r\nHost: %b\r\nAccept-Encoding: identity\r\n%b%b\r\n" % (
            method,
            target,
            self.origin.authority,
            b"Content-Length: 0\r\n" if method in _METHODS_WITH_BODY else b"",
            _fields(headers),
        )


def _fields(headers: Headers) -> bytes:
    lines = []
    for name, values in headers.getAllRawHeaders():
        if name in _RESERVED_FIELDS:
            raise ValueError(f"a caller may not set {name!r}")
        if name == b"Accept-Encoding":
            continue
        if not _METHOD.fullmatch(name):
            raise ValueError(f"not a field name: {name!r}")
        for value in values:
            if not _VALUE.fullmatch(value):
                raise ValueError(f"not a field value: {value!r}")
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


@lru_cache(maxsize=64)
def _origin(base: bytes) -> Origin:
    parts = _ORIGIN.fullmatch(base)
    if parts is None:
        raise ValueError(f"not a host and a port: {base!r}")
    scheme, host, digits = (part.decode("ascii") for part in parts.groups(default=b""))
    port = int(digits) if digits else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65_536:
        raise ValueError(f"not a port: {digits}")
    host = host.lower()
    authority = host if port == _DEFAULT_PORTS[scheme] else f"{host}:{port}"
    return Origin(scheme, host.strip("[]"), port, authority.encode("ascii"))
