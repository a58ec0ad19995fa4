"""Carts that wait for the archive, in the store, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest
import pytest_twisted

from cartd.model import CartStatus
from cartd.store import Store
from tests.support.stored_carts import SHA1, claimed, found, posted, staged, with_status

pytest_plugins = ("tests.support.database_fixtures",)

SINCE = 1_795_514_400.0
"""2026-11-24 10:00:00 UTC."""


@pytest_twisted.ensureDeferred
async def test_all_carts_of_a_holder_wait_until_it_ends_waiting(store: Store) -> None:
    held = [await claimed(store, "a"), await claimed(store, "b")]
    free = await posted(store, "c")
    other = await posted(store, "d")
    assert await store.leases.claim(other.id, "you", now=10, until=100)
    await store.progress.begin_waiting("me", SINCE, "it is unavailable")
    for cart in held:
        waiting = await found(store, cart)
        assert (waiting.waits_since, waiting.waits_for) == (SINCE, "it is unavailable")
        assert waiting.message == (
            "Waiting for the archive since 2026-11-24 10:00:00 UTC: it is unavailable"
        )
        assert await store.carts.newest(cart.uid) == waiting
    for cart in (free, other):
        assert (await found(store, cart)).message == ""
    await store.progress.end_waiting("me")
    for cart in held:
        assert await found(store, cart) == cart


@pytest_twisted.ensureDeferred
async def test_a_waiting_cart_keeps_the_time_at_which_its_wait_began(store: Store) -> None:
    cart = await claimed(store)
    await store.progress.begin_waiting("me", SINCE, "it is unavailable")
    await store.progress.begin_waiting("me", SINCE + 60, "it is slow")
    waiting = await found(store, cart)
    assert (waiting.waits_since, waiting.waits_for) == (SINCE, "it is slow")


@pytest_twisted.ensureDeferred
async def test_a_claimed_cart_reports_since_when_it_waits(store: Store) -> None:
    cart = await claimed(store)
    await store.progress.begin_waiting("me", SINCE, "it is unavailable")
    await store.leases.release_all("me")
    taken = await store.leases.claim(cart.id, "you", now=20, until=100)
    assert taken is not None
    assert taken.waits_since == SINCE
    await store.progress.end_waiting("me")
    assert (await found(store, cart)).waits_since == SINCE


@pytest_twisted.ensureDeferred
async def test_a_tape_wait_records_its_start_and_number_of_files(
    store: Store,
) -> None:
    cart = await claimed(store)
    await store.progress.record_tape(cart.id, "me", 40, now=SINCE)
    assert (await found(store, cart)).message == (
        "Waiting for tape since 2026-11-24 10:00:00 UTC: 40 files"
    )
    await store.progress.record_tape(cart.id, "me", 1, now=SINCE + 60)
    assert (await found(store, cart)).message == (
        "Waiting for tape since 2026-11-24 10:00:00 UTC: 1 file"
    )
    await store.progress.record_tape(cart.id, "you", 7, now=SINCE + 90)
    await store.progress.begin_waiting("me", SINCE + 100, "it is unavailable")
    assert "the archive since 2026-11-24 10:01:40 UTC" in (await found(store, cart)).message
    await store.progress.end_waiting("me")
    assert (await found(store, cart)).tape_files == 1
    await store.progress.record_tape(cart.id, "me", 0, now=SINCE + 120)
    assert await found(store, cart) == cart


@pytest.mark.parametrize("end", ["ready", "error", "deleted"])
@pytest_twisted.ensureDeferred
async def test_a_cart_that_has_ended_waits_no_more(store: Store, end: str) -> None:
    cart = await claimed(store, files=0)
    await store.progress.begin_waiting("me", SINCE, "it is unavailable")
    await store.progress.record_tape(cart.id, "me", 2, now=SINCE)
    if end == "ready":
        await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=20)
    elif end == "error":
        await store.progress.record_error(cart.id, "me", "x", position=None, file_error="", now=20)
    else:
        await store.removals.mark_deleted(cart.id, 20)
    ended = await found(store, cart)
    assert (ended.waits_since, ended.waits_for) == (None, None)
    assert (ended.tape_since, ended.tape_files) == (None, None)


@pytest_twisted.ensureDeferred
async def test_a_cart_that_is_being_bundled_does_not_wait(store: Store) -> None:
    cart = await with_status(store, "u", CartStatus.BUNDLING)
    await store.progress.begin_waiting("me", SINCE, "it is unavailable")
    assert (await found(store, cart)).waits_since is None


@pytest_twisted.ensureDeferred
async def test_recently_staged_file_is_of_the_newest_cart_with_any(
    store: Store,
) -> None:
    assert await store.carts.recently_staged_file("") is None
    await staged(store, "old", 3)
    half = await claimed(store, "half", 3)
    await store.progress.record_states(half.id, "me", [(2, 10, 7)])
    await store.progress.record_staged(half.id, "me", [(2, SHA1)], now=20)
    await claimed(store, "new", 5)
    assert await store.carts.recently_staged_file("") == "id2"
    assert await store.carts.recently_staged_file("id2") is None
    await store.removals.mark_deleted(half.id, 20)
    assert await store.carts.recently_staged_file("id0") in ("id1", "id2")
