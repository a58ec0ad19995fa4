"""What a request says of who asks, before anybody knows whether it is so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.web.guard import BasicCredentialFactory

from cartd.auth.tokens import token_name

REALM = b"cartd"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token, and the name that it is said to belong to."""

    name: str
    secret: bytes = field(repr=False)


class BearerScheme:
    """Tokens as RFC 6750, section 2.1, has them sent."""

    scheme = b"bearer"
    challenge = b'Bearer realm="%s"' % REALM

    def parse(self, value: bytes) -> Credentials:
        """Raises LoginFailed for what cannot be anybody's."""
        name = token_name(value)
        if name is None:
            raise LoginFailed
        return Credentials(_text(name), value)


class BasicScheme:
    """Tokens as passwords (RFC 7617)."""

    scheme = b"basic"
    challenge = b'Basic realm="%s", charset="UTF-8"' % REALM
    _factory = BasicCredentialFactory(REALM)

    def parse(self, value: bytes) -> Credentials:
        """Raises LoginFailed for what cannot be anybody's."""
        given: Any = self._factory.decode(value, None)
        return Credentials(_text(given.username), given.password)


SCHEMES = (BearerScheme(), BasicScheme())


def parse_authorization(value: bytes) -> Credentials:
    """What the value of an ``Authorization`` holds.  Raises LoginFailed if that is unknown."""
    scheme, _, rest = value.strip().partition(b" ")
    for known in SCHEMES:
        if scheme.lower() == known.scheme:
            return known.parse(rest.strip())
    raise LoginFailed


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
