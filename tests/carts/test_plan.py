"""Plans on a simulated clock: what is known after the time, and what a cancelled one leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from io import BytesIO
from typing import IO, Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from cartd.archive import ArchiveError, FileState
from cartd.carts.plan import MAX_FAULTS, MAX_SECONDS, MAX_UNAVAILABLE, WINDOW, Plan, Planner
from cartd.deferreds.fair_semaphore import ByteLimit
from cartd.manifest import Manifest
from cartd.model import NO_QUOTA, UNRESTRICTED, Fit
from tests.support.sqlite_store import SqliteStore
from tests.support.stored_carts import manifest

pytest_plugins = ("tests.support.database_fixtures",)


class HeldArchive:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: dict[str, Deferred[FileState]] = {}
        self.keys: set[Hashable] = set()

    async def ask_once(
        self, key: Hashable, owner: str | None, attempt: Callable[[], Awaitable[FileState]]
    ) -> FileState:
        self.keys.add(key)
        return await attempt()

    async def state(self, archive_id: str) -> FileState:
        def cancelled(_: object) -> None:
            del self.asked[archive_id]

        self.asked[archive_id] = Deferred(cancelled)
        return await self.asked[archive_id]

    def answer(self, archive_id: str, outcome: FileState | ArchiveError) -> None:
        waiting = self.asked.pop(archive_id)
        if isinstance(outcome, ArchiveError):
            waiting.errback(outcome)
        else:
            waiting.callback(outcome)


class Planning:
    def __init__(self, store: SqliteStore, files: int) -> None:
        async def parse(body: IO[bytes]) -> Manifest:
            return manifest(files)

        async def fit(wanted: int) -> Fit:
            return Fit.NOW

        self.clock = Clock()
        self.archive = HeldArchive()
        self.memory = ByteLimit(10)
        self.planner = Planner(
            store,
            self.archive,
            parse=parse,
            memory=self.memory,
            bundle_task=False,
            state=self.archive.state,
            fit=fit,
            limits=NO_QUOTA,
            max_carts_staging=1,
            clock=self.clock,
        )

    def begin(self) -> Running:
        return Running(Deferred.fromCoroutine(self.planner.plan(UNRESTRICTED, BytesIO(b"body"))))


class Running:
    """A plan that is being made."""

    def __init__(self, plan: Deferred[Plan]) -> None:
        self._outcomes: list[Any] = []
        self.cancel = plan.cancel
        plan.addBoth(self._outcomes.append)

    def result(self) -> Any:
        """None until there is one."""
        return self._outcomes[0] if self._outcomes else None


def refused(**more: Any) -> ArchiveError:
    return ArchiveError("refused", retryable=True, **more)


def test_a_plan_ends_after_its_time_with_what_is_known(sqlite_store: SqliteStore) -> None:
    planning = Planning(sqlite_store, 30)
    running = planning.begin()
    planning.archive.answer("id0", FileState(7, 1, on_disk=True))
    planning.archive.answer("id1", FileState(8, 1, on_disk=False))
    planning.clock.advance(MAX_SECONDS - 1)
    assert running.result() is None and len(planning.archive.asked) == WINDOW
    planning.clock.advance(1)

    plan = running.result()
    assert (plan.files.on_disk, plan.files.on_tape, plan.files.unknown) == (1, 1, 28)
    assert not plan.complete and plan.message == (
        "2 of 30 files were looked up: the lookup took more than 30 seconds"
    )
    assert planning.archive.asked == {} and planning.memory.taken == 0
    assert len(planning.archive.keys) == 1


def test_a_plan_that_is_cancelled_asks_nothing_more(sqlite_store: SqliteStore) -> None:
    planning = Planning(sqlite_store, 30)
    running = planning.begin()
    assert planning.memory.taken == 4

    running.cancel()

    outcome = running.result()
    assert isinstance(outcome, Failure) and outcome.check(CancelledError)
    assert planning.archive.asked == {} and planning.memory.taken == 0
    assert not planning.clock.getDelayedCalls()
    assert planning.begin().result() is None  # there is a slot again


def test_the_first_faults_are_told(sqlite_store: SqliteStore) -> None:
    planning = Planning(sqlite_store, 30)
    running = planning.begin()
    while planning.archive.asked:
        planning.archive.answer(max(planning.archive.asked), refused())
    plan = running.result()
    assert [fault.position for fault in plan.faults] == list(range(MAX_FAULTS))
    assert plan.files.failed == 30 and plan.complete


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        ({"outage": True}, 0),
        ({"outage": True, "unavailable": True}, MAX_UNAVAILABLE - 1),
    ],
)
def test_an_unavailable_archive_is_not_asked_on(
    error: dict[str, bool], failed: int, sqlite_store: SqliteStore
) -> None:
    planning = Planning(sqlite_store, 60)
    running = planning.begin()
    while planning.archive.asked:
        planning.archive.answer(min(planning.archive.asked), refused(**error))
    plan = running.result()
    assert (plan.files.failed, plan.files.unknown) == (failed, 60 - failed)
    assert "the archive is unavailable: refused" in plan.message
