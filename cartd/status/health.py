"""The health of the service: checks with a level each, and whether it is ready for requests.

Strategy: a fault of this process alone (the volume is not mounted, the recovery has not ended, the
service stops) fails, so that a proxy sends requests elsewhere.  What every process
of a site shares (the database, the archive) only warns: a failure would take all of them out of the
proxy at once, and cartd's own 503 with Retry-After is a better answer than none.

A request for the health starts no work: checks return what is known.  The volume is polled, one
poll at a time, so that a hanging disk occupies one thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from cartd.deferreds.tasks import Periodic
from cartd.errors import CartdError, VolumeUnavailable
from cartd.volume import DiskUsage

log = Logger()

POLL_INTERVAL = 2.0
"""Seconds between two polls of the volume, and between two evaluations of all checks."""
VOLUME_TIMEOUT = 15.0
"""Seconds without an answer of the disk after which the volume counts as hanging."""


class Level(StrEnum):
    """The result of a check, in the order of severity."""

    OK = "pass"
    WARN = "warn"
    """Requests may fail, but other processes would not serve them better."""
    FAIL = "fail"
    """Requests should be sent to another process."""


_SEVERITY = [*Level]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found."""

    level: Level
    reason: str = ""
    """For all clients, in a few words; empty if the check passes."""
    detail: str = ""
    """For administrators, as a sentence."""


PASS = Finding(Level.OK)


class Check(Protocol):
    """One check; :meth:`finding` must be cheap and must not block."""

    @property
    def name(self) -> str: ...

    def finding(self) -> Finding: ...


@dataclass(frozen=True, slots=True)
class RecoveryCheck:
    """Fails until the first recovery has found the carts that must be verified."""

    recovered: Callable[[], bool]
    name: str = "recovery"

    def finding(self) -> Finding:
        if self.recovered():
            return PASS
        return Finding(
            Level.FAIL,
            "crash recovery is in progress",
            "Requests for carts wait until the first recovery has ended, which needs the database",
        )


@dataclass(slots=True)
class StopCheck:
    """Fails once the service stops."""

    stopping: bool = False
    name: str = "service"

    def finding(self) -> Finding:
        if not self.stopping:
            return PASS
        return Finding(Level.FAIL, "the service is stopping", "Running downloads may still end")


@dataclass(frozen=True, slots=True)
class DatabaseCheck:
    """Warns while the database is unavailable; ``outage`` returns the reason, or None."""

    outage: Callable[[], str | None]
    name: str = "database"

    def finding(self) -> Finding:
        reason = self.outage()
        return PASS if reason is None else Finding(Level.WARN, "unavailable", reason)


@dataclass(frozen=True, slots=True)
class ArchiveCheck:
    """Warns during an outage of the archive; ``outage`` returns the cause, or None.

    An archive that no cart needs is not known to be unavailable.
    """

    outage: Callable[[], str | None]
    name: str = "archive"

    def finding(self) -> Finding:
        cause = self.outage()
        if cause is None:
            return PASS
        return Finding(Level.WARN, "unavailable", f"Carts wait for the archive: {cause}")


class VolumeCheck:
    """Polls the volume; fails while it is not mounted or does not respond."""

    name = "volume"

    def __init__(self, probe: Callable[[], Awaitable[DiskUsage]], clock: IReactorTime) -> None:
        """``probe`` is :meth:`cartd.volume.Volume.disk_usage`, in a thread of its own."""
        self._probe = probe
        self._clock = clock
        self._probing_since: float | None = None
        self._finding = PASS  # a start fails if the volume is unusable
        self.usage: DiskUsage | None = None
        """The last known one; None while the volume is unavailable."""

    async def poll(self) -> None:
        """Ask the disk once; never returns if that hangs, and must not be called again then."""
        self._probing_since = self._clock.seconds()
        try:
            self.usage = await self._probe()
        except VolumeUnavailable as error:
            self.usage = None
            self._finding = Finding(Level.FAIL, "not mounted", str(error))
        except (CartdError, OSError) as error:
            self.usage = None
            self._finding = Finding(Level.FAIL, "cannot be used", str(error))
        else:
            self._finding = PASS
        finally:
            self._probing_since = None

    def finding(self) -> Finding:
        began = self._probing_since
        if began is not None and self._clock.seconds() - began >= VOLUME_TIMEOUT:
            return Finding(
                Level.FAIL,
                "does not respond",
                f"The disk has not answered for more than {VOLUME_TIMEOUT:g} s",
            )
        return self._finding


@dataclass(frozen=True, slots=True)
class SpaceCheck:
    """Warns while less than ``reserve`` bytes are free, so that new carts may find no space."""

    usage: Callable[[], DiskUsage | None]
    reserve: int
    name: str = "space"

    def finding(self) -> Finding:
        usage = self.usage()
        if usage is None or usage.free >= self.reserve:
            return PASS
        return Finding(
            Level.WARN,
            "below the reserve",
            f"{usage.free:,} bytes are free on the volume's file system, less than volume_reserve"
            f" ({self.reserve:,} bytes)",
        )


class CheckResult(Struct, frozen=True, kw_only=True):
    """One check, for administrators."""

    status: Level
    since: datetime
    """Since when it has this status, as far as this process knows."""
    detail: str | UnsetType = UNSET


class HealthDocument(Struct, frozen=True, kw_only=True):
    """All checks, for administrators."""

    status: Level
    """The most severe one."""
    checks: dict[str, CheckResult]


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether to send requests to this process, for all clients."""

    status: Level
    reasons: dict[str, str]
    """By the name of each check that does not pass."""


class Health:
    """Evaluates the checks, remembers since when each has its level, and logs the readiness."""

    def __init__(
        self,
        checks: Sequence[Check],
        volume: VolumeCheck,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """``checks`` beside that of the volume and that of a stop.  ``now`` returns Unix time."""
        self.volume = volume
        self._stop = StopCheck()
        self._checks: Sequence[Check] = (self._stop, volume, *checks)
        self._now = now
        self._since: dict[str, tuple[Level, float]] = {}
        self._logged_ready = False
        self._jobs = [
            Periodic(clock, POLL_INTERVAL, work) for work in (volume.poll, self._evaluate)
        ]

    def start(self) -> None:
        """Poll the volume and evaluate the checks from now on."""
        for job in self._jobs:
            job.start()

    def begin_stop(self) -> None:
        """Report from now on that the service stops."""
        self._stop.stopping = True

    async def stop(self) -> None:
        for job in self._jobs:
            await job.stop()

    @property
    def is_ready(self) -> bool:
        return self.readiness().status is not Level.FAIL

    def readiness(self) -> Readiness:
        found = self._findings()
        readiness = Readiness(
            status=_worst(found), reasons={name: one.reason for name, one in found if one.reason}
        )
        self._log(readiness)
        return readiness

    def document(self) -> HealthDocument:
        found = self._findings()
        return HealthDocument(
            status=_worst(found),
            checks={
                name: CheckResult(
                    status=one.level,
                    since=datetime.fromtimestamp(self._since[name][1], UTC),
                    detail=one.detail or UNSET,
                )
                for name, one in found
            },
        )

    def _findings(self) -> list[tuple[str, Finding]]:
        found = [(check.name, check.finding()) for check in self._checks]
        for name, one in found:
            if name not in self._since or self._since[name][0] is not one.level:
                self._since[name] = (one.level, self._now())
        return found

    async def _evaluate(self) -> None:
        """Log changes of readiness between two requests for it."""
        self.readiness()

    def _log(self, readiness: Readiness) -> None:
        """Log a change between ready and not ready."""
        ready = readiness.status is not Level.FAIL
        if ready == self._logged_ready:
            return
        self._logged_ready = ready
        if ready:
            log.info("The service is ready")
        else:
            reasons = ", ".join(f"{name}: {reason}" for name, reason in readiness.reasons.items())
            log.info("The service is not ready: {reasons}", reasons=reasons)


def _worst(found: Sequence[tuple[str, Finding]]) -> Level:
    return max((one.level for _, one in found), key=_SEVERITY.index)
