"""What a request says of who asks, before anybody knows whether it is so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.web.guard import BasicCredentialFactory

from cartd.auth.tokens import name_in

REALM = b"cartd"


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and the name that it is said to belong to."""

    name: str
    secret: bytes = field(repr=False)


class BearerTokens:
    """Tokens as RFC 6750, section 2.1, has them sent."""

    scheme = b"bearer"
    challenge = b'Bearer realm="%s"' % REALM

    def read(self, value: bytes) -> Token:
        """Raises LoginFailed for what cannot be anybody's."""
        name = name_in(value)
        if name is None:
            raise LoginFailed
        return Token(_text(name), value)


class BasicTokens:
    """Tokens as passwords (RFC 7617)."""

    scheme = b"basic"
    challenge = b'Basic realm="%s", charset="UTF-8"' % REALM
    _factory = BasicCredentialFactory(REALM)

    def read(self, value: bytes) -> Token:
        """Raises LoginFailed for what cannot be anybody's."""
        given: Any = self._factory.decode(value, None)
        return Token(_text(given.username), given.password)


SCHEMES = (BearerTokens(), BasicTokens())


def read_token(value: bytes) -> Token:
    """What the value of an ``Authorization`` holds.  Raises LoginFailed if that is unknown."""
    scheme, _, rest = value.strip().partition(b" ")
    for known in SCHEMES:
        if scheme.lower() == known.scheme:
            return known.read(rest.strip())
    raise LoginFailed


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
