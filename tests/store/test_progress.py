"""Leases and staging progress: a process that lost its lease writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_twisted
from sqlalchemy import update

from cartd.errors import LeaseLost, Problem
from cartd.manifest import Entry
from cartd.model import Cart, CartStatus, FileFailure, FileStatus, TarFacts
from cartd.store import Store, durability, progress, tables
from cartd.store.database import Transaction
from cartd.store.tables import BATCH
from cartd.tar.members import Members
from tests.support.databases import the_reactor
from tests.support.stored_carts import (
    SHA1,
    claimed,
    found,
    gathered,
    manifest,
    posted,
    with_status,
)

pytest_plugins = ("tests.support.database_fixtures",)


class TestLeases:
    @pytest.mark.parametrize(
        ("holder", "now", "dead", "taken"),
        [
            pytest.param("me", 20, (), True, id="its own"),
            pytest.param("you", 20, (), False, id="another's"),
            pytest.param("you", 99.9, (), False, id="another's, almost run out"),
            pytest.param("you", 100, (), True, id="run out"),
            pytest.param("you", 20, ("me",), True, id="a dead one's"),
            pytest.param("you", 20, ("he", "she"), False, id="not of these dead"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_held_cart_goes_only_to(
        self, store: Store, holder: str, now: float, dead: tuple[str, ...], taken: bool
    ) -> None:
        cart = await claimed(store)
        claimable = await store.leases.claimable(holder, now=now, dead=dead)
        assert claimable == ([cart.id] if taken else [])
        again = await store.leases.claim(cart.id, holder, now=now, until=300, dead=dead)
        assert again == (cart if taken else None)
        assert await store.leases.renew(holder, 400) == ({cart.id} if taken else set())
        assert set(await store.leases.holders()) == {holder if taken else "me"}

    @pytest.mark.parametrize("status", [CartStatus.READY, CartStatus.ERROR, CartStatus.DELETED])
    @pytest_twisted.ensureDeferred
    async def test_a_cart_without_work_cannot_be_claimed(
        self, store: Store, status: CartStatus
    ) -> None:
        cart = await with_status(store, "u", status)
        assert await store.leases.claimable("me", now=20) == []
        assert await store.leases.claim(cart.id, "me", now=20, until=100) is None
        assert set(await store.leases.holders()) == set()

    @pytest_twisted.ensureDeferred
    async def test_a_cart_in_bundling_is_claimed_as_it_is(self, store: Store) -> None:
        cart = await with_status(store, "u", CartStatus.BUNDLING)
        assert await store.leases.claim(cart.id, "you", now=200, until=300) == cart

    @pytest_twisted.ensureDeferred
    async def test_of_many_concurrent_claims_one_succeeds(
        self, store: Store, database: str
    ) -> None:
        cart = await posted(store)
        other = Store(database, the_reactor())
        claims = [
            (store, other)[n % 2].leases.claim(cart.id, f"holder {n}", now=10, until=100)
            for n in range(20)
        ]
        results = await gathered(claims)
        await other.close()
        assert [result for result in results if result] == [cart]

    @pytest_twisted.ensureDeferred
    async def test_a_released_cart_is_free_but_only_its_holder_releases_it(
        self, store: Store
    ) -> None:
        cart = await claimed(store)
        await store.leases.release_all("you")
        assert set(await store.leases.holders()) == {"me"}
        await store.leases.release_all("me")
        assert set(await store.leases.holders()) == set()
        assert await store.leases.claim(cart.id, "you", now=11, until=100) == cart

    @pytest_twisted.ensureDeferred
    async def test_renewing_prolongs_all_leases_of_one_holder(self, store: Store) -> None:
        mine = [await claimed(store, uid) for uid in "abc"]
        theirs = await posted(store, "d")
        await store.leases.claim(theirs.id, "you", now=10, until=100)
        await store.removals.mark_deleted(mine[0].id, 20)
        assert await store.leases.renew("me", 500) == {mine[1].id, mine[2].id}
        assert await store.leases.claim(mine[1].id, "you", now=499, until=600) is None
        assert await store.leases.claim(theirs.id, "me", now=499, until=600) == theirs


Record = Callable[[Store, int], Coroutine[Any, Any, object]]
RECORDS: dict[str, Record] = {
    "states": lambda store, cart: store.progress.record_states(cart, "me", [(0, 1, 2)]),
    "reserve": lambda store, cart: store.progress.reserve(
        cart, "me", bytes_total=3, volume_bytes=4
    ),
    "staged": lambda store, cart: store.progress.record_staged(cart, "me", [(0, SHA1)], now=60),
    "error": lambda store, cart: store.progress.record_error(
        cart, "me", "no", position=0, file_error="no", now=60
    ),
    "bundling": lambda store, cart: store.progress.begin_bundling(cart, "me", 60),
    "ready": lambda store, cart: store.progress.record_ready(cart, "me", volume_bytes=5, now=60),
}


class TestProgress:
    @pytest.mark.parametrize("loss", ["taken over", "deleted", "released", "finished"])
    @pytest.mark.parametrize("record", RECORDS)
    @pytest_twisted.ensureDeferred
    async def test_nothing_is_written_once_the_lease_is_lost(
        self, store: Store, record: str, loss: str
    ) -> None:
        cart = await claimed(store, bundle=True)
        if loss == "taken over":
            assert await store.leases.claim(cart.id, "you", now=100, until=200)
        elif loss == "deleted":
            await store.removals.mark_deleted(cart.id, 20)
        elif loss == "released":
            await store.leases.release_all("me")
        else:
            await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=20)
        before = (
            await found(store, cart),
            await store.carts.files(cart.id),
            await store.leases.holders(),
        )
        with pytest.raises(LeaseLost):
            await RECORDS[record](store, cart.id)
        after = (
            await found(store, cart),
            await store.carts.files(cart.id),
            await store.leases.holders(),
        )
        assert after == before

    @pytest_twisted.ensureDeferred
    async def test_a_lease_that_ran_out_is_good_until_another_takes_it(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=1000)
        assert (await found(store, cart)).files_staged == 1

    @pytest_twisted.ensureDeferred
    async def test_sizes_and_times_from_the_archive_are_recorded(self, store: Store) -> None:
        cart = await claimed(store, files=3)
        await store.progress.record_states(cart.id, "me", [(2, 2**40, 2**33), (0, 0, -1)])
        await store.progress.reserve(cart.id, "me", bytes_total=2**40, volume_bytes=2**41)
        first, second, third = await store.carts.files(cart.id)
        assert (first.size, first.mtime, first.status) == (0, -1, FileStatus.STAGING)
        assert (second.size, second.mtime, second.status) == (None, None, FileStatus.WAITING)
        assert (third.size, third.mtime) == (2**40, 2**33)
        now = await found(store, cart)
        assert (now.bytes_total, now.volume_bytes, now.bytes_staged) == (2**40, 2**41, 0)

    @pytest_twisted.ensureDeferred
    async def test_members_are_the_files_of_known_size_by_position(self, store: Store) -> None:
        cart = await claimed(store, files=4)
        await store.progress.record_states(cart.id, "me", [(3, 30, 33), (0, 0, 5), (1, 10, 11)])
        members = await store.carts.members(cart.id, range(4))
        assert (members.sizes, members.mtimes) == ([0, 10, 30], [5, 11, 33])
        files = [file for file in await store.carts.files(cart.id) if file.size is not None]
        assert members.paths == [file.path for file in files]
        assert members.hash_types == [file.hash_type for file in files]
        assert members.hash_sums == [file.hash_sum for file in files]
        some = await store.carts.members(cart.id, range(1, 3))
        assert (some.paths, some.sizes) == (members.paths[1:2], [10])
        assert await store.carts.members(cart.id, range(4, 9)) == Members([], [], [], [], [])

    @pytest_twisted.ensureDeferred
    async def test_members_of_a_bag_have_the_hash_of_one_algorithm(self, store: Store) -> None:
        kinds = [("sha1", SHA1), ("SHA1", SHA1), ("md5", "ab" * 16), ("md5", "cd" * 16)]
        entries = [Entry(f"{n}", f"f{n}", *kind) for n, kind in enumerate(kinds)]
        cart = await claimed(store, files=entries)
        await store.progress.record_states(cart.id, "me", [(n, n, 5) for n in range(4)])
        failed = [FileFailure(1, "gone", Problem.FILE_NOT_IN_ARCHIVE)]
        await store.progress.record_file_errors(cart.id, "me", failed)
        values = {"also_hash_type": "sha1", "also_hash_value": "ef" * 20}
        async with store.carts._database.transaction() as transaction:
            second = update(tables.file).where(tables.file.c.position == 2).values(**values)
            await transaction.execute(second)
        members = await store.carts.bag_members(cart.id, range(9), {"sha1", "SHA1"})
        assert members.paths == ["f0", "f2", "f3"]
        assert members.sums == [SHA1, "ef" * 20, None]
        plain = await store.carts.members(cart.id, range(9))
        assert msgspec.structs.replace(members, sums=[]) == plain
        assert (await store.carts.bag_members(cart.id, range(9), {"none"})).sums == [None] * 3

    @pytest_twisted.ensureDeferred
    async def test_members_keep_every_character_of_their_paths(self, store: Store) -> None:
        paths = [
            *map(chr, (*range(1, 0x100), 0x2028, 0xFFFF, 0x1F600)),
            "'{[,:]}'",
            '\\"',
            "\\u0041",
        ]
        listed = [Entry(f"id{n}", path, "sha1", "") for n, path in enumerate(paths)]
        cart = await claimed(store, files=listed)
        await store.progress.record_states(cart.id, "me", [(n, n, -n) for n in range(len(paths))])
        assert (await store.carts.members(cart.id, range(len(paths)))).paths == paths

    @pytest_twisted.ensureDeferred
    async def test_recording_a_staged_file_twice_counts_it_once(self, store: Store) -> None:
        cart = await claimed(store, files=4)
        await store.progress.record_states(cart.id, "me", [(n, 10**n, 0) for n in range(4)])
        await store.progress.record_staged(cart.id, "me", [(0, SHA1), (2, SHA1)], now=11)
        await store.progress.record_staged(cart.id, "me", [(2, SHA1), (3, SHA1), (3, SHA1)], now=12)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=13)
        await store.progress.record_staged(cart.id, "me", [], now=13)
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (3, 1101)
        staged = [
            file.position for file in await store.carts.files(cart.id) if file.status == "staged"
        ]
        assert staged == [0, 2, 3]

    @pytest_twisted.ensureDeferred
    async def test_a_size_that_comes_after_the_file_counts_as_well(self, store: Store) -> None:
        cart = await claimed(store, files=2)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await store.progress.record_states(cart.id, "me", [(0, 70, 1), (1, 7, 1)])
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (1, 70)
        assert (await store.carts.files(cart.id))[0].status is FileStatus.STAGED

    @pytest_twisted.ensureDeferred
    async def test_thousands_of_rows_are_recorded_at_once(self, store: Store) -> None:
        many = 2 * BATCH + 500
        cart = await claimed(store, files=many)
        await store.progress.record_states(cart.id, "me", [(n, 3, n) for n in range(many)])
        await store.progress.record_staged(cart.id, "me", [(n, SHA1) for n in range(many)], now=11)
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (many, 3 * many)
        assert await store.carts.files(cart.id, unstaged=True) == []

    @pytest_twisted.ensureDeferred
    async def test_a_digest_is_kept_only_where_none_was_declared(self, store: Store) -> None:
        listed = [Entry("1", "a", "sha1", ""), Entry("2", "b", "sha1", SHA1)]
        cart, _ = await store.carts.post("u", manifest(listed), bundle=False, now=10)
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_staged(cart.id, "me", [(0, "c" * 40), (1, "c" * 40)], now=11)
        assert [file.hash_sum for file in await store.carts.files(cart.id)] == ["c" * 40, SHA1]

    @pytest_twisted.ensureDeferred
    async def test_an_error_names_cart_and_file_and_keeps_staged_files(self, store: Store) -> None:
        cart = await claimed(store, files=2)
        await store.progress.record_states(cart.id, "me", [(0, 30, 0), (1, 70, 0)])
        await store.progress.reserve(cart.id, "me", bytes_total=100, volume_bytes=100)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await store.progress.record_error(
            cart.id,
            "me",
            "cart's",
            position=1,
            file_error="file's",
            now=12,
            problem=Problem.HASH_MISMATCH,
        )
        now = await found(store, cart)
        assert (now.status, now.error, now.updated) == (CartStatus.ERROR, "cart's", 12)
        assert (now.volume_bytes, now.bytes_staged) == (30, 30)
        failed = (await store.carts.files(cart.id))[1]
        assert (failed.status, failed.error) == (FileStatus.ERROR, "file's")
        assert now.problem == failed.problem == "hash-mismatch"
        assert set(await store.leases.holders()) == set()

    @pytest_twisted.ensureDeferred
    async def test_files_may_fail_while_the_others_are_staged(self, store: Store) -> None:
        cart = await claimed(store, files=3)
        await store.progress.record_file_errors(
            cart.id,
            "me",
            [FileFailure(0, "gone", Problem.FILE_NOT_IN_ARCHIVE), FileFailure(2, "wrong")],
        )
        files = await store.carts.files(cart.id)
        assert [file.error for file in files] == ["gone", "", "wrong"]
        assert [file.problem for file in files] == ["file-not-in-archive", None, None]
        assert (files[0].status, files[1].status) == (FileStatus.ERROR, FileStatus.WAITING)
        assert (await found(store, cart)).status is CartStatus.STAGING
        await store.progress.record_error(cart.id, "me", "x", position=None, file_error="", now=12)
        assert [file.error for file in await store.carts.files(cart.id)] == ["gone", "", "wrong"]
        assert await store.progress.restage(cart.id, lost=None, now=13)
        again = await store.carts.files(cart.id)
        assert [(file.error, file.problem) for file in again] == [("", None)] * 3
        with pytest.raises(LeaseLost):
            await store.progress.record_file_errors(cart.id, "you", [FileFailure(0, "gone")])

    @pytest_twisted.ensureDeferred
    async def test_an_error_may_have_no_file(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_error(
            cart.id, "me", "No Space Available", position=None, file_error="", now=12
        )
        assert (await found(store, cart)).error == "No Space Available"
        assert {file.status for file in await store.carts.files(cart.id)} == {FileStatus.WAITING}

    @pytest_twisted.ensureDeferred
    async def test_a_failed_cart_uses_the_space_that_is_recorded(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_error(
            cart.id, "me", "no", position=None, file_error="", now=12, volume_bytes=10_240
        )
        assert await store.space.usage() == (10_240, 0)

    @pytest_twisted.ensureDeferred
    async def test_a_failed_cart_keeps_its_reservation_if_unsure(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.reserve(cart.id, "me", bytes_total=100, volume_bytes=100)
        for volume_bytes, taken in ((None, 100), (70, 100), (130, 130)):
            await store.leases.claim(cart.id, "me", now=10, until=100)
            await store.progress.record_error(
                cart.id,
                "me",
                "no",
                position=None,
                file_error="",
                now=12,
                volume_bytes=volume_bytes,
                rest_unknown=True,
            )
            assert await store.space.usage() == (taken, 0)
            assert await store.progress.restage(cart.id, lost=None, now=13)

    @pytest_twisted.ensureDeferred
    async def test_a_cart_is_bundled_without_having_been_posted_as_one(self, store: Store) -> None:
        cart = await claimed(store, bundle=None)
        await store.progress.begin_bundling(cart.id, "me", 15)
        assert (await found(store, cart)).status is CartStatus.BUNDLING
        assert await store.leases.renew("me", 200) == {cart.id}

    @pytest_twisted.ensureDeferred
    async def test_a_ready_cart_has_no_lease(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_ready(cart.id, "me", volume_bytes=77, now=15.5)
        now = await found(store, cart)
        assert (now.status, now.updated, now.volume_bytes) == (CartStatus.READY, 15.5, 77)
        assert set(await store.leases.holders()) == set()


TAR = TarFacts(1, "d" * 64, "[1,1,0,[],[]]", 20.5)


class TestTar:
    @pytest_twisted.ensureDeferred
    async def test_the_same_tar_keeps_its_time_and_another_has_its_own(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=20.5, tar=TAR)
        assert (await found(store, cart)).tar == TAR
        await store.progress.record_tar(cart.id, replace(TAR, since=30))
        assert (await found(store, cart)).tar == TAR
        for other in (
            replace(TAR, digest="e" * 64, lengths="[2,1,0,[],[]]", since=40),
            replace(TAR, digest="e" * 64, layout=2, since=50),
        ):
            await store.progress.record_tar(cart.id, other)
            assert (await found(store, cart)).tar == other

    @pytest_twisted.ensureDeferred
    async def test_a_restaged_cart_with_the_same_tar_keeps_the_tars_time(
        self, store: Store
    ) -> None:
        cart = await claimed(store)
        await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=20.5, tar=TAR)
        assert await store.progress.restage(cart.id, lost=[0], now=30)
        assert await store.leases.claim(cart.id, "me", now=30, until=100)
        await store.progress.record_ready(
            cart.id, "me", volume_bytes=0, now=40, tar=replace(TAR, since=40)
        )
        assert (await found(store, cart)).tar == TAR

    @pytest_twisted.ensureDeferred
    async def test_a_tar_is_recorded_before_it_is_written(self, store: Store) -> None:
        cart = await claimed(store)
        await store.progress.begin_bundling(cart.id, "me", 20.5, TAR)
        assert (await found(store, cart)).tar == TAR
        await store.progress.begin_bundling(cart.id, "me", 30)
        await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=40)
        assert (await found(store, cart)).tar == TAR

    @pytest_twisted.ensureDeferred
    async def test_the_facts_of_a_bag_are_recorded(self, store: Store) -> None:
        cart, other = await claimed(store), await claimed(store, mark="other")
        assert (await found(store, cart)).bag is None
        await store.progress.begin_bundling(cart.id, "me", 20.5, TAR, '{"first": 1}')
        assert (await found(store, cart)).bag == '{"first": 1}'
        await store.progress.begin_bundling(cart.id, "me", 20.5)
        assert ((await found(store, cart)).bag, (await found(store, cart)).tar) == (
            '{"first": 1}',
            TAR,
        )
        await store.progress.record_bag(cart.id, '{"second": 2}')
        assert (await found(store, cart)).bag == '{"second": 2}'
        assert await store.carts.has_other_bag(other)
        assert not await store.carts.has_other_bag(cart)
        await store.removals.mark_deleted(cart.id, 30)
        assert await store.carts.has_other_bag(other)

    @pytest_twisted.ensureDeferred
    async def test_deleted_carts_count_as_other_tars_of_a_second(self, store: Store) -> None:
        made: list[Cart] = []
        for uid, since in (("u", 20.5), ("u", 21.0), ("other", 22.5), ("u", 22.9)):
            cart = await claimed(store, uid, mark=str(len(made)))
            tar = replace(TAR, since=since)
            await store.progress.record_ready(cart.id, "me", volume_bytes=0, now=since, tar=tar)
            made.append(cart)
        await store.removals.mark_deleted(made[0].id, 30)
        newest = made[3]
        assert await store.carts.has_other_tar_of_second(newest, 20)
        assert await store.carts.has_other_tar_of_second(newest, 21)
        assert not await store.carts.has_other_tar_of_second(newest, 19)
        assert not await store.carts.has_other_tar_of_second(
            newest, 22
        )  # its own, and another uid's
        assert await store.carts.has_other_tar_of_second(made[1], 22)

    @pytest_twisted.ensureDeferred
    async def test_a_tar_that_pacifica_wrote_may_be_of_any_second(self, store: Store) -> None:
        cart = await claimed(store)
        await posted(store, mark="not ready yet")
        assert not await store.carts.has_other_tar_of_second(cart, 20)
        nothing: Any = None
        old = replace(manifest(mark="Pacifica's"), fingerprint=nothing)
        await store.carts.post("u", old, bundle=False, now=10)
        assert await store.carts.has_other_tar_of_second(cart, 20)


class TestRestaging:
    @pytest_twisted.ensureDeferred
    async def test_invalidated_files_wait_again_and_are_not_counted(self, store: Store) -> None:
        cart = await claimed(store, files=3)
        await store.progress.record_states(cart.id, "me", [(n, 10**n, 0) for n in range(3)])
        await store.progress.record_staged(cart.id, "me", [(n, SHA1) for n in range(3)], now=11)
        await store.progress.record_ready(cart.id, "me", volume_bytes=111, now=12)
        assert await store.progress.restage(cart.id, lost=[2, 0], now=20)
        now = await found(store, cart)
        assert (now.status, now.updated) == (CartStatus.STAGING, 20)
        assert (now.files_staged, now.bytes_staged) == (1, 10)
        assert [file.position for file in await store.carts.files(cart.id, unstaged=True)] == [0, 2]

    @pytest_twisted.ensureDeferred
    async def test_many_files_are_invalidated_one_batch_per_transaction(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lost: dict[int, list[int]] = {}

        async def invalidate(transaction: Transaction, cart_id: int, positions: list[int]) -> None:
            kept.append(transaction)
            lost.setdefault(id(transaction), []).append(len(positions))
            await durability.invalidate(transaction, cart_id, positions)

        kept: list[Transaction] = []
        monkeypatch.setattr(progress, "invalidate", invalidate)
        monkeypatch.setattr(progress, "BATCH", 2)
        cart = await claimed(store, files=9)
        await store.progress.record_states(cart.id, "me", [(n, 10, 0) for n in range(9)])
        await store.progress.record_staged(cart.id, "me", [(n, SHA1) for n in range(7)], now=11)
        await store.progress.record_file_errors(
            cart.id, "me", [FileFailure(7, "gone"), FileFailure(8, "wrong")]
        )
        lost.clear()
        await store.progress.invalidate_files(cart.id, "me", [0, 1, 2])
        assert list(lost.values()) == [[2], [1]]
        await store.progress.record_error(cart.id, "me", "x", position=None, file_error="", now=12)
        lost.clear()
        assert await store.progress.restage(cart.id, lost=[3, 4, 5], now=20)
        assert list(lost.values()) == [[2], [1]]
        now = await found(store, cart)
        assert (now.files_staged, now.bytes_staged) == (1, 10)
        unstaged = await store.carts.files(cart.id, unstaged=True)
        assert [file.position for file in unstaged] == [0, 1, 2, 3, 4, 5, 7, 8]
        assert {(file.status, file.error) for file in unstaged} == {(FileStatus.WAITING, "")}

    @pytest_twisted.ensureDeferred
    async def test_restaging_clears_errors(self, store: Store) -> None:
        cart = await with_status(store, "u", CartStatus.ERROR)
        assert await store.progress.restage(cart.id, lost=None, now=20)
        now, [file] = await found(store, cart), await store.carts.files(cart.id)
        assert (now.status, now.error) == (CartStatus.STAGING, "")
        assert (file.status, file.error, file.size) == (FileStatus.WAITING, "", 100)

    @pytest.mark.parametrize(
        "status", [CartStatus.STAGING, CartStatus.BUNDLING, CartStatus.DELETED]
    )
    @pytest_twisted.ensureDeferred
    async def test_an_unfinished_or_deleted_cart_is_not_restaged(
        self, store: Store, status: CartStatus
    ) -> None:
        cart = await with_status(store, "u", status)
        files = await store.carts.files(cart.id)
        assert not await store.progress.restage(cart.id, lost=[0], now=20)
        assert await found(store, cart) == cart
        assert await store.carts.files(cart.id) == files

    @pytest.mark.parametrize("status", [CartStatus.READY, CartStatus.STAGING, CartStatus.DELETED])
    @pytest_twisted.ensureDeferred
    async def test_only_a_ready_cart_is_recorded_as_unrecoverable(
        self, store: Store, status: CartStatus
    ) -> None:
        cart = await with_status(store, "u", status)
        ready = status is CartStatus.READY
        assert await store.progress.record_unrecoverable(cart.id, "no disk", now=20) == ready
        now = await found(store, cart)
        if ready:
            assert (now.status, now.error, now.updated) == (CartStatus.ERROR, "no disk", 20)
            assert now.volume_bytes == cart.volume_bytes
        else:
            assert now == cart
