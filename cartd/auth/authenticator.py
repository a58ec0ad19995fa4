"""Finds out who asks, of each request anew: that takes microseconds, and nothing is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.logger import Logger

from cartd.auth.credentials import SCHEMES, Credentials, parse_authorization
from cartd.auth.entries import NAME
from cartd.auth.proxy import TrustedProxies
from cartd.auth.token_registry import TokenRegistry
from cartd.auth.tokens import DUMMY_HASH, redact_secret
from cartd.errors import CartdError, NoCredentials, Unauthenticated
from cartd.model import User

MAX_NAME_SHOWN = 64
"""Characters of it in the message, and so in the log of refusals."""

CREDENTIALS_REQUIRED = (
    "Say who you are: send your token as a bearer token, or as your password by HTTP Basic"
)
BAD_AUTHORIZATION = "The Authorization header is neither a bearer token nor HTTP Basic"
WRONG_CREDENTIALS = "The name or the token is wrong"
PROXY_REQUIRED = "Nobody is asking: requests come here through a proxy that says who asks"
BAD_PROXY_NAME = "The proxy names nobody whose name can be a user's"

log = Logger()


class Authenticator:
    """Compares what a request says with the file of tokens, or believes a trusted proxy."""

    def __init__(
        self, registry: TokenRegistry, proxies: TrustedProxies | None, *, tokens: bool
    ) -> None:
        """``tokens``: whether there are any, or a proxy alone says who asks."""
        self.tokens = tokens
        self._registry = registry
        self._proxies = proxies

    async def poll(self) -> None:
        """Look for changes of the tokens."""
        await self._registry.poll()

    def try_authenticate(self, request: Any) -> User | CartdError:
        """Who asks, or what the request is to be refused with."""
        try:
            return self.authenticate(request)
        except CartdError as error:
            return error
        except Exception:
            log.failure("It cannot be found out who asks")
            return CartdError("Internal error; the service's log has the cause")

    def authenticate(self, request: Any) -> User:
        """Who asks, by the head of the request.

        :raises Unauthenticated: nobody (:class:`NoCredentials`), or nobody who may.
        :raises Unavailable: the file of tokens cannot be read.
        """
        named = None if self._proxies is None else self._proxies.user_name(request)
        if named is not None:
            return self._user_from_proxy(named.decode("utf-8", "backslashreplace"))
        values = request.requestHeaders.getRawHeaders(b"authorization", []) if self.tokens else []
        if not values:
            raise NoCredentials(CREDENTIALS_REQUIRED if self.tokens else PROXY_REQUIRED)
        return self._user_with_token(_credentials_in(values))

    def headers(self, error: CartdError) -> list[tuple[bytes, bytes]]:
        """What an answer to that error has beside its body."""
        if not isinstance(error, Unauthenticated):
            return []
        # At least one challenge (RFC 9110, section 15.5.2); for Basic, browsers ask for a name,
        # which is of no use where only a proxy can give one.
        schemes = SCHEMES if self.tokens else SCHEMES[:1]
        return [(b"WWW-Authenticate", scheme.challenge) for scheme in schemes]

    def _user_with_token(self, token: Credentials) -> User:
        entry = self._registry.entry(token.name)
        # Names are no secrets, but who has a token is nobody's business: always one comparison.
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
    """The message, and whom the client has named: that tells whose token failed."""
    return f"{message}: {redact_secret(name)[:MAX_NAME_SHOWN]!a}"
