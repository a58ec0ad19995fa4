"""HTTP client for the archive: treq on a connection pool with limits."""

# Twisted leaves Agent, its pool and its policies without types.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.web.iweb import IPolicyForHTTPS

from cartd.archive.http_agent import Agent
from cartd.archive.pool import Pool

IDLE_SECONDS = 30
"""How long an unused connection is kept; most servers close theirs later than that."""


def http_client(
    reactor: Any,
    *,
    connections: int,
    connect_timeout: float,
    policy: IPolicyForHTTPS,
    on_response: Callable[[bool], object] = lambda reusable: None,
) -> tuple[HTTPClient, Pool]:
    """Return a client that keeps up to ``connections`` idle connections, and their pool.

    How many requests run at once is the caller's business; ``on_response`` is called after each
    with whether its connection is reusable.  ``policy`` says which certificates to accept over
    ``https:``.  Before the reactor stops, ``pool.closeCachedConnections()``.
    """
    pool = Pool(reactor, max_idle=connections, idle_seconds=IDLE_SECONDS, on_response=on_response)
    agent = Agent(reactor, pool, policy, connect_timeout=connect_timeout)
    return HTTPClient(agent, cookiejar=NoCookies()), pool


class NoCookies(IndexableCookieJar):
    """A jar that stores and sends no cookies: an archive has no sessions."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass
