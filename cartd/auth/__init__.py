"""Who may: the file of tokens, the trusted proxies, and the guard who finds out who asks."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from cartd.auth.authenticator import Guard
from cartd.auth.proxy import Proxies
from cartd.auth.token_file import TokenFile
from cartd.auth.token_registry import Roster
from cartd.config import Config
from cartd.threads import RunsInThread

__all__ = ["Guard", "TokenFile", "guard_of"]


def guard_of(config: Config, threads: RunsInThread, clock: IReactorTime) -> Guard | None:
    """The guard that the configuration asks for, if any.  Reads the file of tokens, blocking.

    :raises ConfigError: that cannot be read, or the settings do not fit each other.
    """
    proxies = Proxies.of(config)
    if config.auth_file is None and proxies is None:
        return None
    roster = Roster(TokenFile(config.auth_file) if config.auth_file else None, threads, clock)
    return Guard(roster, proxies, tokens=config.auth_file is not None)
