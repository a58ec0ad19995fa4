"""Staging: copies the files of carts from the archive to the volume.

:class:`StagingContext` is what the modules of this package work with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from cartd.archive import ArchiveClient
from cartd.archive.circuit_breaker import CircuitBreaker
from cartd.archive.concurrency_limit import AdaptiveLimit
from cartd.archive.retry import RetryPolicy
from cartd.deferreds.rate_limit import FairRateLimiter
from cartd.metrics import UNEXPOSED, Metrics
from cartd.model import Cart
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.store import Store
from cartd.volume import Volume


class ReserveSpace(Protocol):
    """Reserves space on the volume for a cart, or raises NoSpace."""

    def __call__(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class StagingContext:
    """The dependencies that the staging of all carts shares."""

    store: Store
    volume: Volume
    archive: ArchiveClient
    reserve: ReserveSpace
    tar_indexes: TarIndexCache
    breaker: CircuitBreaker
    concurrency_limit: AdaptiveLimit
    retry_policy: RetryPolicy
    poll_limiter: FairRateLimiter
    """Limits the polls of files on tape, of all carts together."""
    recall_retry_interval: float
    """Seconds after which a file that is still on tape is announced again."""
    clock: IReactorTime
    now: Callable[[], float]
    """Unix time."""
    share_divisor: Callable[[str | None], int]
    """Return the divisor of page and window sizes for a cart of this owner."""
    metrics: Metrics = UNEXPOSED
    also_hash: str | None = None
    """The type of the second hash of each file; none without one."""

    def share(self, cart: Cart, whole: int) -> int:
        """Return the fair share of ``whole`` for ``cart``, which is being staged; at least two."""
        return max(whole // self.share_divisor(cart.owner), 2)
