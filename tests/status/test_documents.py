"""Status documents: what they say of a cart in each state, from the store alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from msgspec import UNSET, structs
from msgspec.json import encode
from twisted.internet.task import Clock

from cartd.errors import CartNotFound
from cartd.model import UNRESTRICTED, Cart, CartStatus, FileFailure, Outcome, Viewer
from cartd.status.document import Basis, Cause, Eta, Phase, Queue, Rate, Status
from cartd.status.documents import DocumentRules, StatusDocuments
from cartd.status.pace import Pace, dumped
from cartd.store import Store
from tests.support.databases import the_reactor
from tests.support.stored_carts import SHA1, claimed, deleted, posted, staged, with_status

pytest_plugins = ("tests.support.database_fixtures",)


def documents(store: Store, now: float = 50.0, rules: Any = None) -> StatusDocuments:
    return StatusDocuments(store, lambda: now, Clock().seconds, rules)


async def document(store: Store, cart: Cart, now: float = 50.0, rules: Any = None) -> Status:
    return (await documents(store, now, rules).for_carts([cart.id]))[cart.id]


async def sized(store: Store, uid: str, sizes: list[int]) -> Cart:
    """A cart in staging whose sizes are known."""
    cart = await claimed(store, uid, len(sizes))
    states = [(place, size, 5) for place, size in enumerate(sizes)]
    await store.progress.record_states(cart.id, "me", states)
    await store.progress.reserve(cart.id, "me", bytes_total=sum(sizes), volume_bytes=sum(sizes))
    return cart


@pytest_twisted.ensureDeferred
async def test_a_posted_cart_waits_for_its_turn(store: Store) -> None:
    cart = await posted(store)
    status = await document(store, cart)
    assert (status.phase, status.outcome) == (Phase.QUEUED, None)
    assert status.message == "Waiting for its turn to be staged."
    assert status.waiting is not UNSET and status.waiting.cause is Cause.TURN
    assert (status.files.total, status.files.waiting, status.files.fetching) == (2, 2, UNSET)
    assert status.queue == Queue(carts_ahead=0, files_ahead=0, bytes_ahead=0)
    assert {UNSET} == {status.started, status.finished, status.progress, status.eta, status.kept}
    assert b'"waiting":{"for":"turn","since":"1970-01-01T00:00:10Z"}' in encode(status)


@pytest_twisted.ensureDeferred
async def test_a_cart_in_staging_says_how_far_it_is(store: Store) -> None:
    cart = await sized(store, "u", [100, 900])
    await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=12)
    status = await document(store, cart)
    assert status.phase is Phase.FETCHING
    assert status.message == "Fetching files; 1 of 2 files staged."
    assert (status.files.staged, status.files.waiting) == (1, 1)
    assert (status.bytes.total, status.bytes.staged, status.progress) == (1000, 100, 10.0)
    assert status.started is not UNSET
    assert {UNSET} == {status.waiting, status.rate, status.finished}


@pytest_twisted.ensureDeferred
async def test_sizes_are_asked_for_first(store: Store) -> None:
    status = await document(store, await claimed(store, "u", 1))
    assert status.message == "The archive is asked for the sizes of 1 file."
    assert (status.bytes.total, status.progress) == (UNSET, UNSET)


@pytest_twisted.ensureDeferred
async def test_pace_gives_rate_estimate_and_transfers_in_progress(store: Store) -> None:
    cart = await sized(store, "u", [600, 400])
    pace = Pace(
        at=60.0, fetching=1, here=599, recent=7, mean=5, low=100, high=400, basis=Basis.RATE
    )
    await store.progress.record_paces("me", {cart.id: dumped(pace)})
    status = await document(store, cart)
    assert status.rate == Rate(recent=7, mean=5)
    assert status.eta == Eta(seconds=200, low=100, high=400, basis=Basis.RATE)
    assert (status.files.fetching, status.files.waiting, status.progress) == (1, 1, 59.9)
    assert status.updated.timestamp() == 60.0


@pytest_twisted.ensureDeferred
async def test_progress_never_counts_bytes_twice(store: Store) -> None:
    cart = await sized(store, "u", [600, 400])
    pace = Pace(at=60.0, fetching=1, here=599)
    await store.progress.record_paces("me", {cart.id: dumped(pace)})
    await store.progress.record_staged(cart.id, "me", [(0, "")], now=12)
    assert (await document(store, cart)).progress == 60.0


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("now", "known"), [(99.9, True), (100.0, False)])
async def test_pace_is_absent_once_the_lease_is_over(store: Store, now: float, known: bool) -> None:
    cart = await sized(store, "u", [600, 400])
    pace = Pace(at=60.0, fetching=1, recent=7, low=1, high=4, basis=Basis.RATE)
    await store.progress.record_paces("me", {cart.id: dumped(pace)})
    status = await document(store, cart, now)
    assert (status.rate is not UNSET, status.eta is not UNSET) == (known, known)
    assert (status.waiting is UNSET) is known
    assert ("No process stages the cart" in status.message) is not known


@pytest_twisted.ensureDeferred
async def test_unreadable_pace_of_another_version_is_ignored(store: Store) -> None:
    cart = await sized(store, "u", [1, 2])
    await store.progress.record_paces("me", {cart.id: '{"at":"later"}'})
    assert (await document(store, cart)).rate is UNSET


@pytest_twisted.ensureDeferred
async def test_progress_is_below_100_until_the_cart_is_ready(store: Store) -> None:
    cart = await sized(store, "u", [1, 2])
    await store.progress.record_staged(cart.id, "me", [(0, ""), (1, "")], now=12)
    status = await document(store, cart)
    assert (status.progress, status.outcome) == (99.9, None)
    assert status.message == "All files are staged; the tar is being prepared."
    await store.progress.begin_bundling(cart.id, "me", 13)
    bundling = await document(store, cart)
    assert (bundling.phase, bundling.progress) == (Phase.BUNDLING, 99.9)
    await store.progress.record_ready(cart.id, "me", volume_bytes=3, now=14)
    ready = await document(store, cart)
    assert (ready.progress, ready.outcome) == (100.0, Outcome.COMPLETE)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_waits_for_tape_says_so(store: Store) -> None:
    cart = await sized(store, "u", [1] * 5)
    await store.progress.record_staged(cart.id, "me", [(0, "")], now=12)
    await store.progress.record_tape(cart.id, "me", 3, now=20)
    some = await document(store, cart)
    assert (some.phase, some.files.recalling, some.files.waiting) == (Phase.FETCHING, 3, 1)
    assert some.message == "Fetching files; 1 of 5 files staged, 3 on tape."
    await store.progress.record_staged(cart.id, "me", [(1, "")], now=21)
    rest = await document(store, cart)
    assert rest.phase is Phase.RECALLING
    assert rest.message == "Waiting for 3 files on tape; 2 of 5 files staged."
    assert rest.waiting is not UNSET and rest.waiting.cause is Cause.TAPE
    # Files on tape take no turns.
    assert rest.queue is UNSET


@pytest_twisted.ensureDeferred
async def test_a_cart_that_waits_for_the_archive_has_no_estimate(store: Store) -> None:
    cart = await sized(store, "u", [600, 400])
    pace = Pace(at=60.0, recent=7, low=1, high=4, basis=Basis.RATE)
    await store.progress.record_paces("me", {cart.id: dumped(pace)})
    await store.progress.begin_waiting("me", 70.0, "connection refused")
    status = await document(store, cart)
    assert status.eta is UNSET
    assert status.waiting is not UNSET and status.waiting.detail == "connection refused"
    expected = "Waiting for the archive since 1970-01-01 00:01:10 UTC: connection refused"
    assert status.message == expected


@pytest_twisted.ensureDeferred
async def test_a_ready_cart_has_its_tar_and_how_long_it_is_kept(store: Store) -> None:
    cart = await with_status(store, "r", CartStatus.READY)
    status = await document(store, cart, rules=DocumentRules(None, buffer_time=60.0))
    assert status.message == "The cart is ready for download."
    assert status.finished == status.updated
    assert status.download is not UNSET and status.download.url == "/r"
    assert status.kept is not UNSET and status.kept.promised_until is not UNSET
    assert status.kept.promised_until.timestamp() == 70.0
    assert {UNSET} == {status.waiting, status.queue, status.failed, status.eta}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("rules", "may_go"),
    [
        (DocumentRules(eviction_enabled=False), "It stays until it is deleted."),
        (DocumentRules(), "It may be evicted as soon as the volume needs space."),
    ],
)
async def test_nothing_is_promised_without_a_buffer_time(
    store: Store, rules: DocumentRules, may_go: str
) -> None:
    status = await document(store, await staged(store, "r"), rules=rules)
    assert status.kept is not UNSET
    assert (status.kept.promised_until, status.kept.may_go) == (UNSET, may_go)


@pytest_twisted.ensureDeferred
async def test_a_failed_cart_lists_its_first_failed_files(store: Store) -> None:
    cart = await sized(store, "u", [1] * 12)
    failed = [FileFailure(place, f"reason {place}") for place in range(11)]
    await store.progress.record_file_errors(cart.id, "me", failed[:1])
    made = documents(store)
    before = (await made.for_carts([cart.id]))[cart.id].failed
    assert before is not UNSET and [one.error for one in before.first] == ["reason 0"]
    await store.progress.record_file_errors(cart.id, "me", failed)
    await store.progress.record_error(cart.id, "me", "why", position=None, file_error="", now=12)
    status = (await made.for_carts([cart.id]))[cart.id]
    assert (status.outcome, status.message, status.progress) == (Outcome.FAILED, "why", 0.0)
    assert status.failed is not UNSET
    assert (status.failed.count, status.failed.all) == (11, "/-/carts/u/files?status=failed")
    assert [one.position for one in status.failed.first] == list(range(10))
    assert status.failed.first[0].path == "dir/file0"
    assert status.links["retry"] == "/-/carts/u/retry"


@pytest_twisted.ensureDeferred
async def test_urls_begin_with_the_public_url(store: Store) -> None:
    cart = await staged(store, "w w/ä")
    rules = DocumentRules("https://carts.example/c/")
    status = await document(store, cart, rules=rules)
    quoted = "w%20w%2F%C3%A4"
    assert status.download is not UNSET
    assert status.download.url == f"https://carts.example/c/{quoted}"
    assert status.links["self"] == f"https://carts.example/c/-/carts/{quoted}"


@pytest_twisted.ensureDeferred
async def test_the_queue_counts_the_carts_of_all_owners(store: Store) -> None:
    small, large = await sized(store, "s", [10, 10]), await sized(store, "l", [10] * 10)
    both = await documents(store).for_carts([small.id, large.id])
    assert both[small.id].queue == Queue(carts_ahead=0, files_ahead=2, bytes_ahead=20)
    assert both[large.id].queue == Queue(carts_ahead=1, files_ahead=2, bytes_ahead=20)


@pytest_twisted.ensureDeferred
async def test_the_queue_is_read_once_a_second(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cart = await posted(store)
    read = 0
    remaining: Callable[[], Any] = store.statuses.remaining

    async def counted() -> Any:
        nonlocal read
        read += 1
        return await remaining()

    monkeypatch.setattr(store.statuses, "remaining", counted)
    clock = Clock()
    made = StatusDocuments(store, lambda: 50.0, clock.seconds)
    for _ in range(3):
        await made.for_carts([cart.id])
    assert read == 1
    clock.advance(1)
    await made.for_carts([cart.id])
    assert read == 2


@pytest_twisted.ensureDeferred
async def test_deleted_carts_have_a_last_document_but_no_newest(store: Store) -> None:
    cart = await staged(store, "d")
    await deleted(store, cart)
    assert (await document(store, cart)).message == "The cart has been deleted."
    assert await documents(store).for_carts([cart.id + 1]) == {}
    with pytest.raises(CartNotFound):
        await documents(store).newest(UNRESTRICTED, "d")
    with pytest.raises(CartNotFound):
        await documents(store).newest(UNRESTRICTED, "nul\0")


@pytest_twisted.ensureDeferred
async def test_another_users_cart_is_not_found(store: Store) -> None:
    await staged(store, "u")
    with pytest.raises(CartNotFound):
        await documents(store).newest(Viewer("other", sees_all=False), "u")


@pytest_twisted.ensureDeferred
async def test_two_processes_on_one_store_give_the_same_document(
    store: Store, database: str
) -> None:
    carts = [
        await sized(store, "s", [10, 20]),
        await posted(store, "w"),
        await with_status(store, "e", CartStatus.ERROR),
        await staged(store, "r"),
    ]
    pace = Pace(at=60.0, fetching=1, recent=7, mean=8, low=1, high=4, basis=Basis.QUEUE)
    await store.progress.record_paces("me", {carts[0].id: dumped(pace)})
    other = Store(database, the_reactor())
    try:
        ids = [cart.id for cart in carts]
        first = await documents(store).for_carts(ids)
        second = await documents(other).for_carts(ids)
    finally:
        await other.close()
    assert encode(first) == encode(second)
    assert all(structs.asdict(one)["message"] for one in first.values())
