"""Plans: what a cart of a manifest would take, without entering it.

Strategy: files that another cart has on the volume are found in the store, by id and hash.  For the
others the archive is asked, in turn with the requests of the carts in staging, but only for a
limited number of files, and for a limited time; a plan says what it does not know.  Its requests
are not retried, and its failures open no circuit breaker.  A few plans are made at a time, and one
for each user.  A plan ends when its Deferred is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Protocol

from msgspec import UNSET, Struct, UnsetType
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from cartd.archive import ArchiveError, FileState
from cartd.carts.submit import LIMIT_SETTING, body_size
from cartd.deferreds.fair_semaphore import ByteLimit
from cartd.deferreds.tasks import for_each, with_timeout
from cartd.errors import Problem, QuotaExceeded, Unavailable
from cartd.manifest import Entry, Manifest
from cartd.model import MAX_MISSING, Fit, Outcome, UserQuota, Viewer
from cartd.store import Store

MAX_PLANS = 4
"""Plans that are made at a time."""
MAX_ASKED = 1000
"""Files that the archive is asked for."""
MAX_SECONDS = 30.0
"""Seconds for which files are looked up."""
WINDOW = 8
"""Requests to the archive at a time, for one plan."""
MAX_UNAVAILABLE = 20
"""Files that the archive may call unavailable before it counts as unavailable itself."""
PAGE = 500
"""Files that are looked up in the store at a time."""
MAX_FAULTS = 10


class PlanFiles(Struct, frozen=True, kw_only=True):
    """Numbers of files by where they are."""

    total: int
    on_volume: int
    """Of another cart: they would be linked."""
    on_disk: int
    """Of the archive."""
    on_tape: int
    missing: int
    """The archive does not have them."""
    failed: int
    """The archive did not answer for them."""
    unknown: int
    """Not looked up."""


class PlanBytes(Struct, frozen=True, kw_only=True):
    """Bytes of those files."""

    total: int | UnsetType = UNSET
    """Absent unless the size of every file is known."""
    on_volume: int
    on_disk: int
    on_tape: int


class PlanFault(Struct, frozen=True, kw_only=True):
    """A file that could not be staged now."""

    position: int
    id: str
    path: str
    error: str
    problem: str


class PlanLimit(Struct, frozen=True, kw_only=True):
    """A limit because of which the cart would not be accepted now."""

    limit: str
    """The setting."""
    message: str


class Plan(Struct, frozen=True, kw_only=True):
    """What a cart of a manifest would take."""

    complete: bool
    """Whether every file was looked up, and found or not."""
    message: str
    files: PlanFiles
    bytes: PlanBytes
    outcome: Outcome | UnsetType = UNSET
    """How the cart would end if its files failed as they do now; absent if that is not known."""
    space: Fit | UnsetType = UNSET
    """Whether the volume has space; absent if that depends on files that are unknown."""
    limits: list[PlanLimit]
    faults: list[PlanFault]
    """The first ten."""


@dataclass
class _Tally:
    """What is known so far."""

    files: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("on_volume", "on_disk", "on_tape", "missing", "failed"), 0
        )
    )
    sizes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("on_volume", "on_disk", "on_tape"), 0)
    )
    faults: list[PlanFault] = field(default_factory=list)
    reason: str = ""
    """Why files are unknown."""
    unavailable: int = 0

    def add(self, place: str, size: int) -> None:
        self.files[place] += 1
        self.sizes[place] += size

    def fail(self, position: int, entry: Entry, error: ArchiveError) -> None:
        missing = error.missing or error.problem is Problem.FILE_NOT_IN_ARCHIVE
        self.files["missing" if missing else "failed"] += 1
        self.faults.append(
            PlanFault(
                position=position,
                id=entry.archive_id,
                path=entry.path,
                error=str(error),
                problem=error.problem,
            )
        )
        # The first ones in the order of the manifest, whatever the order of the responses.
        self.faults.sort(key=lambda fault: fault.position)
        del self.faults[MAX_FAULTS:]


class _ArchiveUnavailable(Exception):
    """No further file is asked for."""


class Archive(Protocol):
    """What asks the archive; see :class:`cartd.archive.retry.RetryPolicy`."""

    async def ask_once(
        self, key: Hashable, owner: str | None, attempt: Callable[[], Awaitable[FileState]]
    ) -> FileState: ...


class Planner:
    """Makes plans."""

    def __init__(
        self,
        store: Store,
        archive: Archive,
        *,
        parse: Callable[[IO[bytes]], Awaitable[Manifest]],
        memory: ByteLimit,
        bundle_task: bool,
        state: Callable[[str], Awaitable[FileState]],
        fit: Callable[[int], Awaitable[Fit]],
        limits: UserQuota,
        max_carts_staging: int,
        clock: IReactorTime,
    ) -> None:
        """``state`` returns the state of a file in the archive; ``fit`` whether bytes have space.

        ``parse`` is :meth:`cartd.carts.submit.Submissions.parse`; the memory, the limits, and
        whether carts are bundled by default are those of posts.
        """
        self._store = store
        self._parse = parse
        self._memory = memory
        self._bundle_task = bundle_task
        self._archive = archive
        self._state = state
        self._fit = fit
        self._limits = limits
        self._max_carts_staging = max_carts_staging
        self._clock = clock
        self._running: list[str | None] = []
        """The owners of the plans that are being made."""

    async def plan(self, viewer: Viewer, body: IO[bytes]) -> Plan:
        """Return the plan of the manifest in ``body``.

        :raises InvalidInput: the manifest breaks a rule.
        :raises TooLarge: it has too many entries.
        :raises QuotaExceeded: another plan is being made for this user.
        :raises Unavailable: as many plans as possible are being made.
        """
        async with self._slot(viewer.owner), self._memory.hold(body_size(body)):
            manifest = await self._parse(body)
            tally = _Tally()
            survey = Deferred.fromCoroutine(self._survey(viewer.owner, manifest, tally))
            try:
                await with_timeout(MAX_SECONDS, survey, self._clock)
            except TimeoutError:
                tally.reason = f"the lookup took more than {MAX_SECONDS:g} seconds"
            except _ArchiveUnavailable as error:
                tally.reason = str(error)
            total = len(manifest.entries)
            limits = await self._limits_reached(viewer, total)
            bundle = self._bundle_task if manifest.bundle is None else manifest.bundle
            permitted = min(manifest.max_failed or 0, MAX_MISSING)
        return await self._result(tally, total, limits, bundle=bundle, permitted=permitted)

    @asynccontextmanager
    async def _slot(self, owner: str | None) -> AsyncIterator[None]:
        if owner is not None and owner in self._running:
            raise QuotaExceeded("A plan is being made for you: try again when it is done")
        if len(self._running) >= MAX_PLANS:
            raise Unavailable(f"{MAX_PLANS} plans are being made, as many as may be; try again")
        self._running.append(owner)
        try:
            yield
        finally:
            self._running.remove(owner)

    async def _survey(self, owner: str | None, manifest: Manifest, tally: _Tally) -> None:
        asked = await self._look_up(manifest, tally)
        key = object()

        async def files() -> AsyncIterator[tuple[int, Entry]]:
            for file in asked:
                yield file

        async def ask(file: tuple[int, Entry]) -> None:
            await self._ask(key, owner, file, tally)

        await for_each(files(), ask, lambda: WINDOW)

    async def _look_up(self, manifest: Manifest, tally: _Tally) -> Sequence[tuple[int, Entry]]:
        """Find the files on the volume; return those to ask the archive for."""
        asked: list[tuple[int, Entry]] = []
        entries = enumerate(manifest.entries)
        while page := list(islice(entries, PAGE)):
            staged = await self._store.dedup.staged(
                [(one.archive_id, one.hash_type, one.hash_sum) for _, one in page if one.hash_sum]
            )
            for position, entry in page:
                size = staged.get((entry.archive_id, entry.hash_type, entry.hash_sum))
                if size is not None:
                    tally.add("on_volume", size)
                elif len(asked) < MAX_ASKED:
                    asked.append((position, entry))
                else:
                    tally.reason = f"a plan asks the archive for {MAX_ASKED:,} files at most"
        return asked

    async def _ask(
        self, key: Hashable, owner: str | None, file: tuple[int, Entry], tally: _Tally
    ) -> None:
        position, entry = file
        try:
            state = await self._archive.ask_once(key, owner, lambda: self._state(entry.archive_id))
        except ArchiveError as error:
            tally.unavailable += error.unavailable
            if tally.unavailable >= MAX_UNAVAILABLE or (error.outage and not error.unavailable):
                raise _ArchiveUnavailable(f"the archive is unavailable: {error}") from error
            tally.fail(position, entry, error)
            return
        tally.unavailable = 0
        tally.add("on_disk" if state.on_disk else "on_tape", state.size)

    async def _limits_reached(self, viewer: Viewer, files: int) -> list[PlanLimit]:
        found = []
        if await self._store.carts.unfinished() >= self._max_carts_staging:
            message = f"{self._max_carts_staging} carts are being staged, the limit"
            found.append(PlanLimit(limit=LIMIT_SETTING, message=message))
        limits = self._limits.applicable_to(viewer)
        if limits and viewer.owner is not None:
            try:
                await self._store.carts.check_quota(viewer.owner, limits, files)
            except QuotaExceeded as error:
                found.append(PlanLimit(limit=error.limit or "", message=str(error)))
        return found

    async def _result(
        self,
        tally: _Tally,
        total: int,
        limits: list[PlanLimit],
        *,
        bundle: bool,
        permitted: int,
    ) -> Plan:
        """``permitted``: how many files may be missing in the cart."""
        files = PlanFiles(total=total, unknown=total - sum(tally.files.values()), **tally.files)
        size, complete = sum(tally.sizes.values()), not files.unknown
        outcome = _outcome(files, permitted)
        sized = outcome is Outcome.COMPLETE or outcome is Outcome.PARTIAL
        # A partial cart has no tar on the volume.
        with_tar = bundle and outcome is not Outcome.PARTIAL
        needed = size - tally.sizes["on_volume"] + (size if with_tar else 0)
        space = await self._fit(needed)
        return Plan(
            complete=complete,
            message=_message(files, tally.reason, outcome),
            files=files,
            bytes=PlanBytes(total=size if sized else UNSET, **tally.sizes),
            outcome=UNSET if outcome is None else outcome,
            # What is known is too much already, or it is all.
            space=space if sized or space is Fit.NO else UNSET,
            limits=limits,
            faults=tally.faults,
        )


def _outcome(files: PlanFiles, permitted: int) -> Outcome | None:
    """Return how a cart with these files would end; None if that depends on unknown files."""
    absent = files.missing + files.failed
    if absent > permitted:
        return Outcome.FAILED
    if files.unknown:
        return None
    return Outcome.PARTIAL if absent else Outcome.COMPLETE


def _message(files: PlanFiles, reason: str, outcome: Outcome | None) -> str:
    """Return one sentence on what is known."""
    if files.unknown:
        known = files.total - files.unknown
        return f"{known:,} of {files.total:,} files were looked up: {reason}"
    if files.missing or files.failed:
        absent = f"{files.missing + files.failed:,} of {files.total:,} files cannot be staged now"
        return f"{absent}; the cart would be partial" if outcome is Outcome.PARTIAL else absent
    return "All files were found"
