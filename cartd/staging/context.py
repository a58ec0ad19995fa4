"""What every staging of a cart works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from cartd.archive import ArchiveClient
from cartd.circuit_breaker import CircuitBreaker
from cartd.concurrency_limit import AdaptiveLimit
from cartd.model import Cart
from cartd.rate_limit import FairRateLimiter
from cartd.staging.retry import RetryPolicy
from cartd.store import Store
from cartd.tar_index_cache import TarIndexCache
from cartd.volume import Volume


class ReserveSpace(Protocol):
    """Promises room on the volume to a cart, or raises NoSpace."""

    def __call__(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class StagingContext:
    """What every staging works with."""

    store: Store
    volume: Volume
    archive: ArchiveClient
    reserve: ReserveSpace
    tar_indexes: TarIndexCache
    breaker: CircuitBreaker
    concurrency_limit: AdaptiveLimit
    retry_policy: RetryPolicy
    poll_limiter: FairRateLimiter
    """How often files on tape are asked for, all carts together."""
    recall_retry_interval: float
    """Seconds after which a file that is still on tape is announced again."""
    clock: IReactorTime
    now: Callable[[], float]
    """Unix time."""
    share_divisor: Callable[[str | None], int]
    """Into how many parts carts in staging share pages and windows, for one of that owner."""

    def share(self, cart: Cart, whole: int) -> int:
        """The part of ``whole`` that ``cart``, one of those in staging, has; two at least."""
        return max(whole // self.share_divisor(cart.owner), 2)
