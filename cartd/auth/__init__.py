"""Who may: the file of tokens, the trusted proxies, and the guard who finds out who asks."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from cartd.auth.authenticator import Authenticator
from cartd.auth.proxy import TrustedProxies
from cartd.auth.token_file import TokenFile
from cartd.auth.token_registry import TokenRegistry
from cartd.config import Config
from cartd.threads import ThreadRunner

__all__ = ["Authenticator", "TokenFile", "create_authenticator"]


def create_authenticator(
    config: Config, threads: ThreadRunner, clock: IReactorTime
) -> Authenticator | None:
    """The guard that the configuration asks for, if any.  Reads the file of tokens, blocking.

    :raises ConfigError: that cannot be read, or the settings do not fit each other.
    """
    proxies = TrustedProxies.from_config(config)
    if config.auth_token_file is None and proxies is None:
        return None
    registry = TokenRegistry(
        TokenFile(config.auth_token_file) if config.auth_token_file else None, threads, clock
    )
    return Authenticator(registry, proxies, tokens=config.auth_token_file is not None)
