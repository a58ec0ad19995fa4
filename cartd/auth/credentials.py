"""Parses the credentials of a request; they are not verified here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.web.guard import BasicCredentialFactory

from cartd.auth.tokens import token_name

REALM = b"cartd"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token and the user name sent with it, neither of them verified."""

    name: str
    secret: bytes = field(repr=False)


class BearerScheme:
    """Tokens in an Authorization header (RFC 6750, section 2.1)."""

    scheme = b"bearer"
    challenge = b'Bearer realm="%s"' % REALM

    def parse(self, value: bytes) -> Credentials:
        """Raise LoginFailed if ``value`` contains no name."""
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
        """Raise LoginFailed if ``value`` is malformed."""
        given: Any = self._factory.decode(value, None)
        return Credentials(_text(given.username), given.password)


SCHEMES = (BearerScheme(), BasicScheme())


def parse_authorization(value: bytes) -> Credentials:
    """Parse the value of ``Authorization``.  Raises LoginFailed for any other scheme."""
    scheme, _, rest = value.strip().partition(b" ")
    for known in SCHEMES:
        if scheme.lower() == known.scheme:
            return known.parse(rest.strip())
    raise LoginFailed


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
