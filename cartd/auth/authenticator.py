"""Finds out who asks, of each request anew: that takes microseconds, and nothing is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.logger import Logger

from cartd.auth.credentials import SCHEMES, Token, read_token
from cartd.auth.entries import NAME
from cartd.auth.proxy import Proxies
from cartd.auth.token_registry import Roster
from cartd.auth.tokens import UNKNOWN, without_secret
from cartd.errors import CartdError, NoCredentials, Unidentified
from cartd.model import User

MOST_OF_A_NAME = 64
"""Characters of it in the message, and so in the log of refusals."""

NOBODY = "Say who you are: send your token as a bearer token, or as your password by HTTP Basic"
UNREADABLE = "The Authorization header is neither a bearer token nor HTTP Basic"
WRONG = "The name or the token is wrong"
NO_PROXY = "Nobody is asking: requests come here through a proxy that says who asks"
NO_NAME = "The proxy names nobody whose name can be a user's"

log = Logger()


class Guard:
    """Compares what a request says with the file of tokens, or believes a trusted proxy."""

    def __init__(self, roster: Roster, proxies: Proxies | None, *, tokens: bool) -> None:
        """``tokens``: whether there are any, or a proxy alone says who asks."""
        self.tokens = tokens
        self._roster = roster
        self._proxies = proxies

    async def look(self) -> None:
        """Look for changes of the tokens."""
        await self._roster.look()

    def find_out(self, request: Any) -> User | CartdError:
        """Who asks, or what the request is to be refused with."""
        try:
            return self.identify(request)
        except CartdError as error:
            return error
        except Exception:
            log.failure("It cannot be found out who asks")
            return CartdError("Internal error; the service's log has the cause")

    def identify(self, request: Any) -> User:
        """Who asks, by the head of the request.

        :raises Unidentified: nobody (:class:`NoCredentials`), or nobody who may.
        :raises Unavailable: the file of tokens cannot be read.
        """
        named = None if self._proxies is None else self._proxies.name_in(request)
        if named is not None:
            return self._user_named(named.decode("utf-8", "backslashreplace"))
        values = request.requestHeaders.getRawHeaders(b"authorization", []) if self.tokens else []
        if not values:
            raise NoCredentials(NOBODY if self.tokens else NO_PROXY)
        return self._user_with(_token_in(values))

    def headers(self, error: CartdError) -> list[tuple[bytes, bytes]]:
        """What an answer to that error has beside its body."""
        if not isinstance(error, Unidentified):
            return []
        # At least one challenge (RFC 9110, section 15.5.2); for Basic, browsers ask for a name,
        # which is of no use where only a proxy can give one.
        schemes = SCHEMES if self.tokens else SCHEMES[:1]
        return [(b"WWW-Authenticate", scheme.challenge) for scheme in schemes]

    def _user_with(self, token: Token) -> User:
        entry = self._roster.entry(token.name)
        # Names are no secrets, but who has a token is nobody's business: always one comparison.
        if not (UNKNOWN if entry is None else entry.hash).matches(token.secret) or entry is None:
            raise Unidentified(_about(WRONG, token.name))
        return entry.user

    def _user_named(self, name: str) -> User:
        if not NAME.fullmatch(name):
            raise Unidentified(_about(NO_NAME, name))
        return self._roster.user(name)


def _token_in(values: Sequence[bytes]) -> Token:
    try:
        return read_token(b", ".join(values))
    except LoginFailed:
        raise Unidentified(UNREADABLE) from None


def _about(message: str, name: str) -> str:
    """The message, and whom the client has named: that tells whose token failed."""
    return f"{message}: {without_secret(name)[:MOST_OF_A_NAME]!a}"
