"""Who is who: Twisted's cred (twisted.cred.portal) asks these."""

from __future__ import annotations

from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import Interface, implementer

from cartd.auth.checks import Checks
from cartd.auth.claims import INamedByProxy, IToken, NamedByProxy, Token
from cartd.auth.entries import NAME
from cartd.auth.roster import Roster
from cartd.auth.secret_hash import NOBODYS
from cartd.model import User

Name = bytes | tuple[()]
"""As cred has it: nothing is for nobody, which never is the answer here."""


class IUser(Interface):
    """What the portal gives: a :class:`cartd.model.User`."""


@implementer(ICredentialsChecker)
class TokenChecker:
    """Compares tokens with the hashes of the roster."""

    credentialInterfaces = (IToken,)

    def __init__(self, roster: Roster, checks: Checks) -> None:
        self._roster = roster
        self._checks = checks

    def requestAvatarId(self, credentials: Token) -> Deferred[Name]:
        return Deferred.fromCoroutine(self._name(credentials))

    async def _name(self, token: Token) -> Name:
        while True:
            entry = self._roster.entry(token.name)
            kept = NOBODYS if entry is None else entry.hash
            right = await self._checks.matches(kept, token.secret, token.peer)
            # The file may have been read again meanwhile.
            if self._roster.entry(token.name) == entry:
                break
        if entry is None or not right:
            raise UnauthorizedLogin
        return entry.user.name.encode()


@implementer(ICredentialsChecker)
class ProxyChecker:
    """Believes what a trusted proxy says, if it is a name."""

    credentialInterfaces = (INamedByProxy,)

    def requestAvatarId(self, credentials: NamedByProxy) -> Deferred[Name]:
        if not NAME.fullmatch(credentials.name):
            return fail(UnauthorizedLogin())
        return succeed(credentials.name.encode())


@implementer(IRealm)
class Realm:
    """Makes users of names."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> Any:
        user: User = self._roster.user(avatarId.decode())
        return IUser, user, lambda: None
