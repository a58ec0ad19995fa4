"""Records the pace of the carts that this process stages, for their clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.status.pace import Pace, PaceMeter, Sample, differs, dumped

SAMPLE_INTERVAL = 1.0
"""Seconds between two samples of a few carts."""
CARTS_PER_SECOND = 20
"""Rows written per second at most; many carts are sampled less often."""
MAX_INTERVAL = 15.0
SLICE = 50
"""Steps of measuring before the reactor handles other events."""


class PaceStore(Protocol):
    """Records paces; :class:`cartd.store.progress.Progress` implements it."""

    async def record_paces(self, holder: str, paces: Mapping[int, str | None]) -> None: ...


class PaceRecorder:
    """Measures carts by samples, and writes what has changed in one transaction for all."""

    def __init__(
        self,
        progress: PaceStore,
        holder: str,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """``clock`` is steady; ``now`` returns Unix time."""
        self._progress = progress
        self._holder = holder
        self._clock = clock
        self._now = now
        self._meter = PaceMeter()
        self._recorded: dict[int, Pace | None] = {}
        self._due = 0.0

    async def record(self, samples: Mapping[int, Sample | None], *, available: bool) -> None:
        """Measure the carts and record their paces; None for a cart without transfers yet.

        To be called every ``SAMPLE_INTERVAL``.  ``available``: whether requests are sent to the
        archive.
        """
        now = self._clock.seconds()
        if now < self._due:
            return
        self._due = now + min(max(len(samples) / CARTS_PER_SECOND, SAMPLE_INTERVAL), MAX_INTERVAL)
        measured: dict[int, Pace] = {}
        steps = self._meter.steps(
            {cart_id: sample for cart_id, sample in samples.items() if sample is not None},
            now,
            self._now(),
            available=available,
        )
        for number, step in enumerate(steps, 1):
            if step is not None:
                measured[step[0]] = step[1]
            if not number % SLICE:
                await deferLater(self._clock, 0)
        paces = {cart_id: measured.get(cart_id) for cart_id in samples}
        changed = {
            cart_id: pace
            for cart_id, pace in paces.items()
            if cart_id not in self._recorded or _changed(pace, self._recorded[cart_id])
        }
        # A cart that this process stages again is written again: another one may have staged it.
        self._recorded = {
            cart_id: pace for cart_id, pace in self._recorded.items() if cart_id in samples
        }
        if changed:
            await self._progress.record_paces(
                self._holder,
                {
                    cart_id: None if pace is None else dumped(pace)
                    for cart_id, pace in changed.items()
                },
            )
            self._recorded |= changed


def _changed(pace: Pace | None, recorded: Pace | None) -> bool:
    if pace is None or recorded is None:
        return pace is not recorded
    return differs(pace, recorded)
