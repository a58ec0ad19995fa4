"""DNS cache with rotation, and connection attempts by Happy Eyeballs (RFC 8305).

Strategy: a name may stand for several servers, or for one over IPv4 and IPv6.  Each new connection
begins at the next address, which spreads the load.  If an address refuses, the next one is tried at
once; if it is silent, the next one is tried in parallel after a moment (RFC 8305, section 5).  An
unreachable address is skipped until the next look-up, which comes early when no address is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.archive.request import Origin

ADDRESS_SECONDS: Final = 30.0
"""How long the addresses of a name are cached: about as long as an idle connection is kept.

With a server that closes each connection after its response there would be thousands of look-ups,
each of which takes longer than the rest of a request.
"""
ATTEMPT_SECONDS: Final = 0.25
"""How long one address may be silent before the next is tried, too (RFC 8305, section 8)."""


class Addresses:
    """DNS cache: addresses of names, as the reactor resolves them."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._cache: dict[Origin, tuple[deque[str], float]] = {}
        """Addresses not known to be unreachable, the next one first, and when they expire."""

    def resolve(self, origin: Origin) -> Deferred[list[str]]:
        """Fire with the addresses to try, in order; fail with ``DNSLookupError`` if none."""
        if _is_address(origin.host):
            return succeed([origin.host])
        known, until = self._cache.get(origin, (None, 0.0))
        if known and self._reactor.seconds() < until:
            known.rotate(-1)
            return succeed(list(known))
        found: Deferred[list[str]] = Deferred()
        found.addCallback(self._keep, origin)
        self._reactor.nameResolver.resolveHostName(_Receiver(found), origin.host, origin.port)
        return found

    def mark_unreachable(self, origin: Origin, address: str) -> None:
        """Remove the address from the cache; without any left the name is looked up again."""
        known, _ = self._cache.get(origin, (None, 0.0))
        if known and address in known:
            known.remove(address)
            if not known:
                del self._cache[origin]

    def _keep(self, found: list[str], origin: Origin) -> list[str]:
        if not found:
            raise DNSLookupError(f"no results for hostname lookup: {origin.host}")
        self._cache[origin] = deque(found), self._reactor.seconds() + ADDRESS_SECONDS
        return found


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self, found: Deferred[list[str]]) -> None:
        self._result = found
        self._found: dict[str, None] = {}

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address):
            self._found[address.host] = None

    def resolutionComplete(self) -> None:
        self._result.callback(list(self._found))


class HappyEyeballs:
    """Connects to the first of ``addresses`` that accepts; ``connect`` begins one attempt.

    ``mark_unreachable`` is called for those that failed, or were silent while a later one accepted.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: list[str],
        connect: Callable[[str], Deferred[Any]],
        mark_unreachable: Callable[[str], None],
    ) -> None:
        self.connected: Deferred[Any] = Deferred(lambda _: self._stop())
        """Fires with the protocol, or fails as the last attempt did; cancelling it ends all."""
        self._reactor = reactor
        self._left = deque(addresses)
        self._connect = connect
        self._mark_unreachable = mark_unreachable
        self._pending: dict[Deferred[Any], str] = {}
        self._timer: IDelayedCall | None = None
        self._done = False
        self._try_next()

    def _try_next(self) -> None:
        self._stop_timer()
        address = self._left.popleft()
        attempt = self._connect(address)
        self._pending[attempt] = address
        if self._left:
            self._timer = self._reactor.callLater(ATTEMPT_SECONDS, self._try_next)
        attempt.addCallbacks(
            self._succeeded, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
        )

    def _succeeded(self, protocol: Protocol, attempt: Deferred[Any]) -> None:
        del self._pending[attempt]
        for silent in self._pending.values():
            self._mark_unreachable(silent)
        self._stop()
        self.connected.callback(protocol)

    def _failed(self, reason: Failure, attempt: Deferred[Any]) -> None:
        address = self._pending.pop(attempt, None)
        if self._done or address is None:
            return
        self._mark_unreachable(address)
        if self._left:
            self._try_next()
        elif not self._pending:
            self._stop()
            self.connected.errback(reason)

    def _stop(self) -> None:
        self._done = True
        self._stop_timer()
        for attempt in list(self._pending):
            attempt.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
