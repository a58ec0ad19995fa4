"""The watcher of carts and the subscriptions to their events, on a test clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.errors import CartNotFound, Problem, Unavailable
from cartd.model import UNRESTRICTED, Cart, FileFailure, Viewer
from cartd.status import events as module
from cartd.status.document import Status
from cartd.status.documents import StatusDocuments
from cartd.status.events import (
    COMMENT,
    COMMENT_INTERVAL,
    MAX_DURATION,
    MAX_FAILURES,
    MIN_INTERVAL,
    OUTAGE_COMMENT,
    POLL_INTERVAL,
    REFRESH_INTERVAL,
    SLICE,
    EventId,
    Events,
    Subscription,
    parse_event_id,
)
from tests.support.event_client import Event, parsed
from tests.support.sqlite_store import SqliteStore
from tests.support.volume_parts import failure_of, logged, outcome, result_of

pytest_plugins = ("tests.support.database_fixtures",)


class Client:
    """Takes events as soon as they are there, unless it is paused."""

    def __init__(self, events: Events, uid: str, seen: EventId | None, viewer: Viewer) -> None:
        self.subscription: Subscription | None = None
        self.taken: list[bytes] = []
        self._following = Deferred.fromCoroutine(self._follow(events, uid, seen, viewer))
        self.outcome = outcome(self._following)

    async def _follow(self, events: Events, uid: str, seen: EventId | None, viewer: Viewer) -> str:
        async with events.subscribe(viewer, uid, seen) as self.subscription:
            if self.subscription is None:
                return "finished"
            while (data := await self.subscription.next()) is not None:
                self.taken.append(data)
        return "ended"

    @property
    def events(self) -> list[Event]:
        return parsed(b"".join(self.taken))

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def leave(self) -> None:
        self._following.cancel()

    def pause(self) -> None:
        assert self.subscription is not None
        self.subscription.pause()

    def resume(self) -> None:
        assert self.subscription is not None
        self.subscription.resume()


class Site:
    """A store, and the watcher of its carts."""

    def __init__(self, store: SqliteStore, limit: int = 100) -> None:
        self.store = store
        self.clock = Clock()
        self.asked: list[Sequence[int]] = []
        """The carts whose versions were read, by query."""
        self.built: list[int] = []
        """The carts whose documents were built."""
        self._documents = StatusDocuments(store, lambda: 0.0, self.clock.seconds)
        self._versions = store.statuses.versions
        store.statuses.versions = self._count_versions  # type: ignore[method-assign]
        self.events = Events(store, self, self.clock, limit=limit)

    async def for_carts(self, cart_ids: Sequence[int]) -> dict[int, Status]:
        self.built += cart_ids
        return await self._documents.for_carts(cart_ids)

    async def _count_versions(self, cart_ids: Sequence[int]) -> dict[int, int]:
        self.asked.append(cart_ids)
        return await self._versions(cart_ids)

    def post(self, uid: str = "u", **more: Any) -> Cart:
        """Post a cart of two files that this process stages."""
        cart = self.store.post(uid, {f"{uid}-{name}": b"data" for name in "ab"}, **more)
        return self.store.lease_to(cart, "me", until=1e9)

    def change(self, cart: Cart) -> None:
        result_of(self.store.progress.record_tape(cart.id, "me", 2, now=0.0))

    def fail(self, cart: Cart, position: int = 0) -> None:
        errors = [FileFailure(position, "it is not there", Problem.FILE_NOT_IN_ARCHIVE)]
        result_of(self.store.progress.record_file_errors(cart.id, "me", errors))

    def finish(self, cart: Cart) -> None:
        result_of(self.store.progress.record_ready(cart.id, "me", volume_bytes=8, now=0.0))

    def client(
        self, uid: str = "u", seen: EventId | None = None, viewer: Viewer = UNRESTRICTED
    ) -> Client:
        return Client(self.events, uid, seen, viewer)

    def advance(self, seconds: float) -> None:
        """Advance the clock in small steps, until all that is due then is done."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(POLL_INTERVAL / 4, end - self.clock.seconds()))
        self.settle()

    def settle(self) -> None:
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)


def id_of(event: Event) -> EventId:
    found = parse_event_id(event.id)
    assert found is not None
    return found


@pytest.fixture
def site(sqlite_store: SqliteStore) -> Site:
    return Site(sqlite_store)


def test_the_first_status_is_there_at_once(site: Site) -> None:
    cart = site.post()
    client = site.client()
    [event] = client.events
    [document] = result_of(site.for_carts([cart.id])).values()
    assert (event.name, event.id) == ("status", f"{cart.id}-{document.version}")
    assert (event.json["uid"], event.json["status"]) == ("u", "staging")


def test_a_change_is_sent_within_a_poll(site: Site) -> None:
    cart = site.post()
    client = site.client()
    site.advance(10)
    assert client.names == ["status"]
    site.change(cart)
    site.advance(POLL_INTERVAL)
    assert client.names == ["status", "status"]
    assert id_of(client.events[1]) > id_of(client.events[0])
    assert "tape" in client.events[1].json["message"]


def test_a_cart_has_at_most_one_status_a_second_and_none_is_late(site: Site) -> None:
    cart = site.post()
    client = site.client()
    sent = [site.clock.seconds()]
    for _ in range(200):
        site.change(cart)
        site.advance(0.1)
        sent += [site.clock.seconds()] * (len(client.events) - len(sent))
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert len(sent) > 12
    assert min(gaps) > MIN_INTERVAL - 1e-6
    assert max(gaps) < 1.5


def test_one_query_and_one_document_serve_all_streams(site: Site) -> None:
    carts = [site.post(uid) for uid in ("u", "v", "w")]
    clients = [site.client(uid) for uid in ("u", "v", "w") for _ in range(5)]
    site.advance(2)
    site.asked, site.built = [], []
    site.change(carts[0])
    site.advance(POLL_INTERVAL)
    assert (site.asked, site.built) == ([[cart.id for cart in carts]], [carts[0].id])
    assert [len(client.events) for client in clients] == [2] * 5 + [1] * 10
    assert len({id(client.taken[-1]) for client in clients[:5]}) == 1


def test_another_client_of_a_watched_cart_costs_no_document(site: Site) -> None:
    site.post()
    site.client()
    site.built = []
    assert site.client().names == ["status"]
    assert site.built == []


def test_nothing_runs_without_streams(site: Site) -> None:
    cart = site.post()
    client = site.client()
    site.finish(cart)
    site.advance(2)
    assert client.outcome == ["ended"] and site.events.count == 0
    site.advance(POLL_INTERVAL)
    site.asked = []
    site.advance(100)
    assert not site.asked and not site.clock.getDelayedCalls()
    assert site.client().names == ["end"]


def test_a_cart_is_watched_until_its_last_client_leaves(site: Site) -> None:
    left, other = site.post("u"), site.post("v")
    clients = [site.client("u"), site.client("u"), site.client("v")]
    clients[0].leave()
    site.advance(POLL_INTERVAL)
    assert site.asked == [[left.id, other.id]]
    clients[1].leave()
    site.advance(POLL_INTERVAL)
    assert site.asked[1:] == [[other.id]] and site.events.count == 1


def test_the_end_has_the_last_document_and_ends_the_stream(site: Site) -> None:
    cart = site.post()
    client = site.client()
    site.advance(0.9)
    site.change(cart)
    site.finish(cart)
    site.advance(1)
    assert client.names == ["status", "end"] and client.outcome == ["ended"]
    assert client.events[-1].json["status"] == "ready"


def test_a_client_of_a_finished_cart_gets_the_end(site: Site) -> None:
    site.finish(site.post())
    client = site.client()
    assert client.names == ["end"] and client.outcome == ["ended"]


def test_a_client_that_has_the_end_gets_nothing(site: Site) -> None:
    site.finish(site.post())
    last = id_of(site.client().events[-1])
    assert site.client(seen=last).outcome == ["finished"]
    before = EventId(last.cart_id, last.version - 1)
    assert site.client(seen=before).names == ["end"]
    assert site.events.count == 0


def test_a_client_of_the_cart_before_gets_the_end_of_its_successor(site: Site) -> None:
    first = site.post()
    site.finish(first)
    seen = id_of(site.client().events[-1])
    assert result_of(site.store.removals.mark_deleted(first.id, 0.0))
    site.finish(site.post())
    client = site.client(seen=seen)
    assert client.names == ["end"]
    assert id_of(client.events[0]).version == seen.version


def test_a_client_that_reconnects_gets_the_present_status(site: Site) -> None:
    cart = site.post()
    first = site.client().events[0]
    assert site.client(seen=id_of(first)).events == [first]
    site.change(cart)
    site.advance(2)
    [event] = site.client(seen=id_of(first)).events
    assert event.name == "status" and id_of(event) > id_of(first)


def test_new_failures_are_events_of_their_own(site: Site) -> None:
    cart = site.post()
    site.fail(cart, 1)
    early = site.client()
    site.fail(cart, 0)
    site.advance(2)
    late = site.client()
    site.advance(2)
    assert early.names == ["status", "file", "status"] and late.names == ["status"]
    _, failure, status = early.events
    assert failure.json == {
        "position": 0,
        "id": "u-a",
        "path": "dir/u-a",
        "error": "it is not there",
        "problem": "file-not-in-archive",
    }
    assert failure.id == early.events[0].id
    assert status.json["files"]["failed"] == 2


def test_a_failure_comes_before_the_end(site: Site) -> None:
    cart = site.post()
    client = site.client()
    failed = site.store.progress.record_error(
        cart.id, "me", "It failed", position=1, file_error="it is damaged", now=0.0
    )
    result_of(failed)
    site.advance(2)
    assert client.names == ["status", "file", "end"]
    assert client.events[-1].json["status"] == "error"


def test_failures_of_a_slow_client_are_bounded() -> None:
    subscription = Subscription(Clock())
    subscription.pause()
    for number in range(10):
        subscription.offer(
            [b"event: file\ndata: 1\n\n"] * 30, b"event: status\ndata: %d\n\n" % number
        )
    subscription.resume()
    data = result_of(subscription.next())
    assert data is not None
    events = parsed(data)
    assert len(events) == MAX_FAILURES + 1
    assert events[-1].json == 9


def test_a_slow_client_gets_only_the_newest_status(site: Site) -> None:
    cart = site.post()
    slow, fast = site.client(), site.client()
    slow.pause()
    for _ in range(20):
        site.change(cart)
        site.advance(2)
    assert len(slow.events) == 1 and len(fast.events) == 21
    slow.resume()
    assert slow.events[1:] == [fast.events[-1]]


def test_a_slow_client_gets_the_end_when_it_reads(site: Site) -> None:
    cart = site.post()
    client = site.client()
    client.pause()
    site.finish(cart)
    site.advance(10)
    assert client.names == ["status"] and not client.outcome
    client.resume()
    assert client.names == ["status", "end"] and client.outcome == ["ended"]


def test_a_silent_stream_gets_comments(site: Site) -> None:
    site.post()
    client = site.client()
    site.advance(COMMENT_INTERVAL + POLL_INTERVAL)
    assert client.taken[1:] == [COMMENT]
    site.advance(10 * COMMENT_INTERVAL)
    assert 9 <= client.taken[1:].count(COMMENT) == len(client.taken) - 1 <= 11


def test_a_document_that_changes_without_its_cart_is_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.post()
    client = site.client()

    async def with_another_message(cart_ids: Sequence[int]) -> dict[int, Status]:
        found = await site._documents.for_carts(cart_ids)
        return {number: _with_message(one, "2 carts before it") for number, one in found.items()}

    monkeypatch.setattr(site, "for_carts", with_another_message)
    site.advance(REFRESH_INTERVAL - 1)
    assert len(client.events) == 1
    site.advance(2)
    assert client.events[1].json["message"] == "2 carts before it"
    assert client.events[1].id == client.events[0].id
    site.advance(REFRESH_INTERVAL * 3)
    assert len(client.events) == 2


def _with_message(document: Status, message: str) -> Status:
    values = {name: getattr(document, name) for name in document.__struct_fields__}
    return Status(**{**values, "message": message})


def test_an_outage_of_the_database_keeps_the_stream(site: Site) -> None:
    cart = site.post()
    client = site.client()
    with site.store.unavailable():
        with pytest.raises(Unavailable):
            result_of(site.store.leases.release_all("nobody"))
        site.advance(2 * COMMENT_INTERVAL)
        comments = client.taken[1:]
        assert set(comments) == {OUTAGE_COMMENT} and 2 <= len(comments) <= 3
    site.change(cart)
    site.advance(60)
    assert client.names == ["status", "status"] and not client.outcome
    assert client.taken[-1] == COMMENT


def test_comments_are_sent_while_the_database_does_not_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.post()
    client = site.client()
    hanging: Deferred[dict[int, int]] = Deferred()
    asked = []

    def versions(cart_ids: Sequence[int]) -> Deferred[dict[int, int]]:
        asked.append(cart_ids)
        return hanging

    monkeypatch.setattr(site.store.statuses, "versions", versions)
    site.advance(3 * COMMENT_INTERVAL)
    assert 2 <= client.taken[1:].count(COMMENT) == len(client.taken) - 1
    assert len(asked) == 1 and not hanging.called
    site.events.stop()
    assert hanging.called
    assert client.outcome == ["ended"] and not site.clock.getDelayedCalls()


def test_a_deleted_cart_ends_its_stream(site: Site) -> None:
    cart = site.post()
    client = site.client()
    assert result_of(site.store.removals.mark_deleted(cart.id, 0.0))
    site.advance(2)
    assert client.outcome == ["ended"] and client.names[-1] == "end"
    assert client.events[-1].json["status"] == "deleted"
    assert isinstance(failure_of(site.client().outcome), CartNotFound)


def test_a_cart_whose_rows_are_gone_ends_its_stream(site: Site) -> None:
    cart = site.post()
    client = site.client()
    site.store.query("DELETE FROM file WHERE cart_id = ?", cart.id)
    site.store.query("DELETE FROM cart WHERE id = ?", cart.id)
    site.advance(2)
    assert client.outcome == ["ended"] and client.names == ["status"]


def test_unknown_carts_and_those_of_others_are_not_found(site: Site) -> None:
    site.post("hers", owner="alice")
    assert site.client("hers", viewer=Viewer("alice", sees_all=False)).names == ["status"]
    bob = Viewer("bob", sees_all=False)
    for client in (site.client("hers", viewer=bob), site.client("none"), site.client("a\0b")):
        assert isinstance(failure_of(client.outcome), CartNotFound)
    assert site.events.count == 1


def test_the_number_of_streams_is_limited(sqlite_store: SqliteStore) -> None:
    site = Site(sqlite_store, limit=2)
    cart = site.post()
    first = [site.client(), site.client()]
    error = failure_of(site.client().outcome)
    assert isinstance(error, Unavailable) and error.limit == "server.max_event_streams"
    site.finish(cart)
    site.advance(2)
    assert [client.outcome for client in first] == [["ended"]] * 2
    assert site.client().names == ["end"]


def test_a_stop_ends_all_streams_at_once(site: Site) -> None:
    site.post()
    running, slow = site.client(), site.client()
    slow.pause()
    site.events.stop()
    assert running.outcome == slow.outcome == ["ended"]
    assert isinstance(failure_of(site.client().outcome), Unavailable)
    assert not site.clock.getDelayedCalls() and site.events.count == 0


@pytest.mark.parametrize("number", [1, 2 * SLICE + 1])
def test_streams_are_served_in_slices(site: Site, number: int) -> None:
    carts = [site.post(f"u{each}") for each in range(number)]
    clients = [site.client(f"u{each % number}") for each in range(2 * SLICE + 1)]
    site.advance(2)
    counts = []

    def other_event() -> None:
        counts.append(sum(len(client.taken) == 2 for client in clients))
        if counts[-1] < len(clients):
            site.clock.callLater(0, other_event)

    for cart in carts:
        site.change(cart)
    site.clock.callLater(POLL_INTERVAL, other_event)
    site.clock.advance(POLL_INTERVAL)
    assert sorted({*counts} - {0}) == [SLICE, 2 * SLICE, 2 * SLICE + 1]


def test_a_stop_ends_streams_that_wait_for_their_slice(site: Site) -> None:
    cart = site.post()
    clients = [site.client() for _ in range(3 * SLICE)]
    site.advance(2)
    ended = []

    def stop() -> None:
        ended.append(sum(client.outcome == ["ended"] for client in clients))
        if ended[-1]:
            site.events.stop()
        else:
            site.clock.callLater(0, stop)

    site.finish(cart)
    site.clock.callLater(POLL_INTERVAL, stop)
    site.clock.advance(POLL_INTERVAL)
    assert ended[-1] == SLICE
    assert all(client.outcome == ["ended"] for client in clients)
    assert not site.clock.getDelayedCalls()


def test_a_stream_is_closed_after_its_time_for_the_client_to_reconnect(site: Site) -> None:
    site.post()
    client = site.client()
    client.pause()
    site.clock.advance(MAX_DURATION - 1)
    assert not client.outcome
    site.advance(2)
    assert client.outcome == ["ended"]


def test_an_unexpected_failure_is_logged_and_the_streams_stay(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = site.post()
    client = site.client()
    monkeypatch.setattr(module, "encode", lambda _: 1 / 0)
    site.change(cart)
    with logged() as lines:
        site.advance(10)
    monkeypatch.undo()
    assert len([line for line in lines if line.get("log_failure")]) == 1
    site.advance(20)
    assert client.names == ["status", "status"] and not client.outcome


@pytest.mark.parametrize(
    ("text", "event_id"),
    [("3-7", EventId(3, 7)), ("0-0", EventId(0, 0)), (None, None), ("", None), ("7", None),
     ("-1", None), ("3-", None), ("3--7", None), ("3-7 ", None), ("3-7-1", None),
     ("\u0663-7", None), ("x-7", None), ("1-" + "9" * 5000, None)],
)  # fmt: skip
def test_only_the_id_of_an_event_is_parsed(text: str | None, event_id: EventId | None) -> None:
    assert parse_event_id(text) == event_id
