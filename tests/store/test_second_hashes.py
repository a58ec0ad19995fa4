"""Second hashes of files in the store, and which hashes the files of a cart have."""

from __future__ import annotations

import pytest_twisted

from cartd.manifest import Entry
from cartd.model import HashTypes, SecondHash
from cartd.store import Store
from tests.support.stored_carts import SHA1, claimed, manifest

pytest_plugins = ("tests.support.database_fixtures",)

FIRST, SECOND = SecondHash("sha256", "aa"), SecondHash("sha512", "bb")


async def recorded(store: Store, cart_id: int) -> list[tuple[str, str | None, str | None]]:
    return [
        (file.status, file.also_hash_type, file.also_hash_sum)
        for file in await store.carts.files(cart_id)
    ]


@pytest_twisted.ensureDeferred
async def test_a_second_hash_is_recorded_with_its_file(store: Store) -> None:
    cart = await claimed(store, files=4)
    staged = [(0, SHA1), (1, SHA1), (2, SHA1)]
    await store.progress.record_states(cart.id, "me", [(n, 1, 1) for n in range(4)])
    await store.progress.record_staged(
        cart.id, "me", staged, now=11, second={0: FIRST, 2: SECOND, 3: FIRST}
    )
    assert await recorded(store, cart.id) == [
        ("staged", "sha256", "aa"),
        ("staged", None, None),
        ("staged", "sha512", "bb"),
        ("staging", None, None),
    ]
    assert await store.dedup.record_found(cart.id, "me", {3: SHA1}, {3: SECOND}) == {3}
    assert (await recorded(store, cart.id))[3] == ("staged", "sha512", "bb")

    # It stays with a lost file, and is replaced when that is staged again.
    await store.progress.invalidate_files(cart.id, "me", [0, 2])
    assert (await recorded(store, cart.id))[0] == ("waiting", "sha256", "aa")
    await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=12, second={0: SECOND})
    assert (await recorded(store, cart.id))[0] == ("staged", "sha512", "bb")


@pytest_twisted.ensureDeferred
async def test_a_link_copies_the_second_hash_of_its_source(store: Store) -> None:
    source = await claimed(store, "source", files=3)
    cart = await claimed(store, "cart", files=3)
    await store.progress.record_states(source.id, "me", [(n, 1, 1) for n in range(3)])
    await store.progress.record_staged(
        source.id, "me", [(n, SHA1) for n in range(3)], now=11, second={0: FIRST, 1: FIRST}
    )
    # The others had a second hash before they were lost.
    await store.progress.record_staged(
        cart.id, "me", [(1, SHA1), (2, SHA1)], now=12, second={1: SECOND, 2: SECOND}
    )
    await store.progress.invalidate_files(cart.id, "me", [1, 2])

    duplicates = await store.dedup.duplicates(cart.id, range(3))
    assert [(one.also_hash_type, one.also_hash_sum) for one in duplicates] == [
        ("sha256", "aa"),
        ("sha256", "aa"),
        (None, None),
    ]
    assert await store.dedup.record_linked(cart.id, "me", duplicates) == set()
    assert await recorded(store, cart.id) == [
        ("staged", "sha256", "aa"),
        ("staged", "sha256", "aa"),
        ("staged", "sha512", "bb"),
    ]


@pytest_twisted.ensureDeferred
async def test_the_hashes_of_staged_files_are_counted(store: Store) -> None:
    listed = [Entry(str(n), f"p{n}", "md5" if n % 2 else "sha1", "") for n in range(6)]
    cart, _ = await store.carts.post("u", manifest(listed), bundle=False, now=10)
    await store.leases.claim(cart.id, "me", now=10, until=100)
    assert await store.statuses.hash_types(cart.id) == []

    await store.progress.record_staged(
        cart.id,
        "me",
        [(0, "00"), (1, "11"), (2, ""), (3, "33"), (4, "44")],
        now=11,
        second={1: FIRST, 3: FIRST},
    )

    found = await store.statuses.hash_types(cart.id)
    assert {(one.hash_type, one.is_known, one.also_hash_type): one.files for one in found} == {
        ("sha1", True, None): 2,
        ("sha1", False, None): 1,
        ("md5", True, "sha256"): 2,
    }
    assert HashTypes(2, "md5", is_known=True, also_hash_type="sha256") in found
