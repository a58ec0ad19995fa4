"""The recording of paces: when, what, and in how many transactions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.errors import DatabaseUnavailable
from cartd.staging.paces import PaceRecorder
from cartd.status.pace import Pace, Sample, loaded
from tests.support.sqlite_store import SqliteStore
from tests.support.volume_parts import result_of

pytest_plugins = ("tests.support.database_fixtures",)


class Progress:
    """Takes the written paces."""

    def __init__(self) -> None:
        self.written: list[dict[int, Pace | None]] = []
        self.fails = False

    async def record_paces(self, holder: str, paces: Mapping[int, str | None]) -> None:
        assert holder == "me"
        if self.fails:
            raise DatabaseUnavailable("away")
        self.written.append(
            {cart_id: None if text is None else loaded(text) for cart_id, text in paces.items()}
        )


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(progress: Progress, clock: Clock) -> PaceRecorder:
    return PaceRecorder(progress, "me", clock, lambda: 1000 + clock.seconds())


def sample(done: int) -> Sample:
    return Sample(None, 0, done, done, 1000 - done, 1000 - done, 1, 0, 0)


def record(recorder: PaceRecorder, samples: Mapping[int, Sample | None]) -> None:
    result_of(recorder.record(samples, available=True))


def test_measuring_many_carts_leaves_the_reactor_time_for_others(
    recorder: PaceRecorder, progress: Progress, clock: Clock
) -> None:
    samples = {cart_id: sample(0) for cart_id in range(60)}
    recording = Deferred.fromCoroutine(recorder.record(samples, available=True))
    assert not recording.called
    clock.advance(0)
    assert recording.called
    assert [len(written) for written in progress.written] == [60]


def test_paces_of_all_carts_are_one_transaction(recorder: PaceRecorder, progress: Progress) -> None:
    record(recorder, {1: sample(0), 2: None})
    assert progress.written == [{1: Pace(at=1000.0, fetching=1), 2: None}]


def test_only_changes_are_written(recorder: PaceRecorder, progress: Progress, clock: Clock) -> None:
    record(recorder, {1: sample(0), 2: None})
    clock.advance(1)
    record(recorder, {1: sample(0), 2: None})
    assert len(progress.written) == 1
    for done in range(1, 15):
        clock.advance(1)
        record(recorder, {1: sample(done), 2: None})
    assert all(list(written) == [1] for written in progress.written[1:])
    last = progress.written[-1][1]
    assert last is not None and last.low is not None


def test_samples_are_at_least_a_second_apart(
    recorder: PaceRecorder, progress: Progress, clock: Clock
) -> None:
    record(recorder, {1: sample(0)})
    clock.advance(0.9)
    record(recorder, {1: None})
    assert len(progress.written) == 1
    clock.advance(0.1)
    record(recorder, {1: None})
    assert progress.written[1] == {1: None}


def test_many_carts_are_sampled_less_often(
    recorder: PaceRecorder, progress: Progress, clock: Clock
) -> None:
    record(recorder, dict.fromkeys(range(100)))
    clock.advance(4.9)
    record(recorder, {cart_id: sample(0) for cart_id in range(20)})
    assert len(progress.written) == 1
    clock.advance(0.1)
    record(recorder, {cart_id: sample(0) for cart_id in range(20)})
    assert len(progress.written) == 2


def test_what_was_not_written_is_written_later(
    recorder: PaceRecorder, progress: Progress, clock: Clock
) -> None:
    progress.fails = True
    with pytest.raises(DatabaseUnavailable):
        record(recorder, {1: sample(0)})
    progress.fails = False
    clock.advance(1)
    record(recorder, {1: sample(0)})
    assert progress.written == [{1: Pace(at=1001.0, fetching=1)}]


def test_a_cart_that_is_staged_again_is_written_again(
    recorder: PaceRecorder, progress: Progress, clock: Clock
) -> None:
    for samples in ({1: sample(0)}, {}, {1: sample(0)}):
        record(recorder, samples)
        clock.advance(1)
    assert [list(written) for written in progress.written] == [[1], [1]]


def test_a_claim_discards_the_pace_of_another_process(sqlite_store: SqliteStore) -> None:
    cart = sqlite_store.post("u", {"a": b"x"})
    store = sqlite_store
    result_of(store.leases.claim(cart.id, "other", now=0, until=60))
    result_of(store.progress.record_paces("other", {cart.id: '{"at":1.0}'}))
    result_of(store.leases.claim(cart.id, "me", now=100, until=160))
    [(_, details)] = result_of(store.statuses.details([cart.id])).values()
    assert details.pace is None
