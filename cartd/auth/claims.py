"""What a request says of who asks, before anybody knows whether it is so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.cred.credentials import ICredentials
from twisted.cred.error import LoginFailed
from twisted.web.guard import BasicCredentialFactory
from zope.interface import implementer

REALM = b"cartd"


class IToken(ICredentials):
    """A name and its secret, from some address."""


class INamedByProxy(ICredentials):
    """A name that a trusted proxy has given."""


@implementer(IToken)
@dataclass(frozen=True, slots=True)
class Token:
    name: str
    secret: bytes = field(repr=False)
    peer: str


@implementer(INamedByProxy)
@dataclass(frozen=True, slots=True)
class NamedByProxy:
    name: str


SECRET, PROXY = b"secret", b"proxy"
"""The ways in which a request may name somebody."""


class BearerTokens:
    """Tokens as RFC 6750, section 2.1, has them sent; the name stands before the last dot."""

    scheme = b"bearer"
    challenge = b'Bearer realm="%s"' % REALM

    def read(self, value: bytes, peer: str) -> Token:
        """Raises LoginFailed for what cannot be anybody's."""
        name, dot, _ = value.rpartition(b".")
        if not dot:
            raise LoginFailed
        return Token(_text(name), value, peer)


class BasicTokens:
    """Tokens as passwords (RFC 7617)."""

    scheme = b"basic"
    challenge = b'Basic realm="%s", charset="UTF-8"' % REALM
    _factory = BasicCredentialFactory(REALM)

    def read(self, value: bytes, peer: str) -> Token:
        """Raises LoginFailed for what cannot be anybody's."""
        given: Any = self._factory.decode(value, None)
        return Token(_text(given.username), given.password, peer)


SCHEMES = (BearerTokens(), BasicTokens())


def read_token(value: bytes, peer: str) -> Token:
    """What the value of an ``Authorization`` holds.  Raises LoginFailed if that is unknown."""
    scheme, _, rest = value.strip().partition(b" ")
    for known in SCHEMES:
        if scheme.lower() == known.scheme:
            return known.read(rest.strip(), peer)
    raise LoginFailed


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
