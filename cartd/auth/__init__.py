"""Authentication: the token file, trusted proxies, and the authenticator of requests."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from cartd.auth.authenticator import Authenticator, TrustedPeers, TrustedProxies, peer_of
from cartd.auth.token_file import TokenFile, TokenRegistry
from cartd.config import Config
from cartd.deferreds.threads import ThreadRunner

__all__ = ["Authenticator", "TokenFile", "TrustedPeers", "create_authenticator", "peer_of"]


def create_authenticator(
    config: Config, threads: ThreadRunner, clock: IReactorTime
) -> Authenticator | None:
    """Return the configured authenticator, or None if [auth] is off.

    Reads the token file, which blocks.

    :raises ConfigError: the file cannot be read, or the settings contradict each other.
    """
    proxies = TrustedProxies.from_config(config)
    if config.auth_token_file is None and proxies is None:
        return None
    registry = TokenRegistry(
        TokenFile(config.auth_token_file) if config.auth_token_file else None, threads, clock
    )
    return Authenticator(registry, proxies, tokens=config.auth_token_file is not None)
