"""Authentication of requests, by the token in the Authorization header or by a trusted proxy.

Each request is authenticated anew: it takes microseconds, and nothing is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.logger import Logger
from twisted.web.guard import BasicCredentialFactory

from cartd.auth.proxy import TrustedProxies
from cartd.auth.token_file import TokenRegistry
from cartd.auth.tokens import DUMMY_HASH, NAME, redact_secret, token_name
from cartd.errors import INTERNAL_ERROR, CartdError, NoCredentials, Unauthenticated
from cartd.model import User

log = Logger()

REALM = b"cartd"
MAX_NAME_SHOWN = 64
"""Characters of a name that are shown in the message, and so in the rejection log."""

CREDENTIALS_REQUIRED = (
    "Authentication required: send your token as a bearer token or as the HTTP Basic password"
)
BAD_AUTHORIZATION = "The Authorization header is neither a bearer token nor HTTP Basic"
WRONG_CREDENTIALS = "The name or the token is wrong"
PROXY_REQUIRED = "Authentication required: the proxy in front must send the user's name"
BAD_PROXY_NAME = "The proxy sent no valid user name"


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


class Authenticator:
    """Checks a request's token against the token file, or accepts a trusted proxy's user name."""

    def __init__(
        self, registry: TokenRegistry, proxies: TrustedProxies | None, *, tokens: bool
    ) -> None:
        """``tokens``: whether tokens are accepted; otherwise only the proxy names users."""
        self.tokens = tokens
        self._registry = registry
        self._proxies = proxies

    async def poll(self) -> None:
        """Reload the token file if it has changed."""
        await self._registry.poll()

    def try_authenticate(self, request: Any) -> User | CartdError:
        """Return the user, or the error to reject the request with."""
        try:
            return self.authenticate(request)
        except CartdError as error:
            return error
        except Exception:
            log.failure("Internal error while a request was authenticated")
            return CartdError(INTERNAL_ERROR)

    def authenticate(self, request: Any) -> User:
        """Return the user of the request, from its head.

        :raises Unauthenticated: no credentials (:class:`NoCredentials`), or wrong ones.
        :raises Unavailable: the token file cannot be read.
        """
        named = None if self._proxies is None else self._proxies.user_name(request)
        if named is not None:
            return self._user_from_proxy(named.decode("utf-8", "backslashreplace"))
        values = request.requestHeaders.getRawHeaders(b"authorization", []) if self.tokens else []
        if not values:
            raise NoCredentials(CREDENTIALS_REQUIRED if self.tokens else PROXY_REQUIRED)
        return self._user_with_token(_credentials_in(values))

    def headers(self, error: CartdError) -> list[tuple[bytes, bytes]]:
        """Return the headers of the response to that error."""
        if not isinstance(error, Unauthenticated):
            return []
        # At least one challenge (RFC 9110, section 15.5.2).  Browsers react to Basic with a dialog,
        # which is useless where only the proxy can set the name.
        schemes = SCHEMES if self.tokens else SCHEMES[:1]
        return [(b"WWW-Authenticate", scheme.challenge) for scheme in schemes]

    def _user_with_token(self, token: Credentials) -> User:
        entry = self._registry.entry(token.name)
        # Always exactly one comparison, so that timing does not reveal which names exist.
        if not (DUMMY_HASH if entry is None else entry.hash).matches(token.secret) or entry is None:
            raise Unauthenticated(_with_name(WRONG_CREDENTIALS, token.name))
        return entry.user

    def _user_from_proxy(self, name: str) -> User:
        if not NAME.fullmatch(name):
            raise Unauthenticated(_with_name(BAD_PROXY_NAME, name))
        return self._registry.user(name)


def _credentials_in(values: Sequence[bytes]) -> Credentials:
    try:
        return parse_authorization(b", ".join(values))
    except LoginFailed:
        raise Unauthenticated(BAD_AUTHORIZATION) from None


def _with_name(message: str, name: str) -> str:
    """Append the name sent by the client: it shows whose token failed."""
    return f"{message}: {redact_secret(name)[:MAX_NAME_SHOWN]!a}"
