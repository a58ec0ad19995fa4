"""Finds out who asks, and remembers it; nothing of a secret is kept but a digest."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.cred.credentials import ICredentials
from twisted.cred.error import LoginFailed, UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from cartd.auth.checkers import IUser
from cartd.auth.claims import PROXY, SCHEMES, SECRET, NamedByProxy, read_token
from cartd.auth.proxy import Proxies, peer_of
from cartd.auth.recent import Recent
from cartd.errors import CartdError, Unidentified
from cartd.model import User
from cartd.shared_job import SharedJob

MOST_KNOWN = 4096
MOST_WRONG = 1024
"""Of these, the ones seen last: a client that goes on with a revoked token costs no check."""
MOST_OF_A_NAME = 64
"""Characters of it in the log."""

NOBODY = "Say who you are: send your token as a bearer token, or as your password by HTTP Basic"
UNREADABLE = "The Authorization header is neither a bearer token nor HTTP Basic"
WRONG = "The name or the token is wrong"
NO_PROXY = "Nobody is asking: requests come here through a proxy that says who asks"
NO_NAME = "The proxy names nobody whose name can be a user's"

log = Logger()


class Guard:
    """Asks the portal about each claim that it has not met lately."""

    def __init__(
        self,
        portal: Portal,
        proxies: Proxies | None,
        look: Callable[[], Awaitable[None]],
        *,
        tokens: bool,
    ) -> None:
        """``look`` looks for changes of the tokens, if there are ``tokens`` at all."""
        self.look = look
        self.tokens = tokens
        self._portal = portal
        self._proxies = proxies
        self._digest_key = secrets.token_bytes(32)
        self._known: Recent[User] = Recent(MOST_KNOWN)
        # Apart: a flood of wrong secrets makes nobody forgotten.
        self._wrong: Recent[str] = Recent(MOST_WRONG)
        self._asking: dict[bytes, SharedJob[User]] = {}

    def forget(self) -> None:
        """Believe nothing that was found out before."""
        self._known.clear()
        self._wrong.clear()

    def known(self, request: Any) -> User | None:
        """Who asks, if that can be told at once: a matter of microseconds."""
        way, value = self._presented(request)
        return None if value is None else self._known.get(self._digest(way, value))

    async def find_out(self, request: Any) -> User | CartdError:
        """Who asks, or what the request is to be refused with."""
        try:
            return await self.identify(request)
        except CartdError as error:
            return error
        except CancelledError:
            raise
        except Exception:
            log.failure("It cannot be found out who asks")
            return CartdError("Internal error; the service's log has the cause")

    async def identify(self, request: Any) -> User:
        """Who asks, by the head of the request.  Who tries and fails is logged.

        :raises Unidentified: nobody, or nobody who may.
        :raises TooMany, Unavailable: that cannot be found out now.
        """
        way, value = self._presented(request)
        if value is None:
            raise Unidentified(NOBODY if self.tokens else NO_PROXY)
        name, peer = "somebody", peer_of(request)
        try:
            credentials = _read(way, value, peer)
            name = ascii(credentials.name[:MOST_OF_A_NAME])
            return await self._login(self._digest(way, value), credentials)
        except CartdError as error:
            log.warn("Refused {name} from {peer}: {error}", name=name, peer=peer, error=error)
            raise

    def headers(self, error: CartdError) -> list[tuple[bytes, bytes]]:
        """What an answer to that error has beside its body."""
        if not isinstance(error, Unidentified):
            return []
        # At least one challenge (RFC 9110, section 15.5.2); for Basic, browsers ask for a name,
        # which is of no use where only a proxy can give one.
        schemes = SCHEMES if self.tokens else SCHEMES[:1]
        return [(b"WWW-Authenticate", scheme.challenge) for scheme in schemes]

    def _presented(self, request: Any) -> tuple[bytes, bytes | None]:
        """In which way the request names somebody, and whom; the value may be secret."""
        if self._proxies is not None:
            named = self._proxies.name_in(request)
            if named is not None:
                return PROXY, named
        values = request.requestHeaders.getRawHeaders(b"authorization") if self.tokens else None
        return SECRET, b", ".join(values) if values else None

    def _digest(self, way: bytes, value: bytes) -> bytes:
        return hashlib.blake2b(value, key=self._digest_key, person=way).digest()

    async def _login(self, digest: bytes, credentials: Any) -> User:
        """Those who make the same claim at the same time wait for one answer."""
        if (reason := self._wrong.get(digest)) is not None:
            raise Unidentified(reason)
        asking = self._asking.get(digest)
        if asking is None or not asking.open:
            asking = self._asking[digest] = SharedJob(lambda: self._ask(digest, credentials))
        try:
            return await asking.result()
        finally:
            if not asking.open and self._asking.get(digest) is asking:
                del self._asking[digest]

    async def _ask(self, digest: bytes, credentials: ICredentials) -> User:
        try:
            _, avatar, _ = await self._portal.login(credentials, None, IUser)
        except UnauthorizedLogin:
            reason = NO_NAME if isinstance(credentials, NamedByProxy) else WRONG
            self._wrong.put(digest, reason)
            raise Unidentified(reason) from None
        assert isinstance(avatar, User)
        self._known.put(digest, avatar)
        return avatar


def _read(way: bytes, value: bytes, peer: str) -> Any:
    if way == PROXY:
        return NamedByProxy(value.decode("utf-8", "backslashreplace"))
    try:
        return read_token(value, peer)
    except LoginFailed:
        raise Unidentified(UNREADABLE) from None
