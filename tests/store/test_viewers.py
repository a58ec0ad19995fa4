"""Viewers and quotas in the store, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Executable, create_engine, event
from sqlalchemy.pool import NullPool

from cartd.errors import QuotaExceeded
from cartd.model import UNRESTRICTED, Cart, CartStatus, User, UserQuota, Viewer
from cartd.store import Store, carts, leases, lookups, removals
from tests.support.databases import sqlite_url, the_reactor
from tests.support.stored_carts import SHA1, deleted, found, gathered, manifest

pytest_plugins = ("tests.support.database_fixtures",)

ADA, BOB = Viewer.of(User("ada")), Viewer.of(User("bob"))
ROOT = Viewer.of(User("root", admin=True))


async def post(
    store: Store, viewer: Viewer, uid: str = "u", files: int = 2, **more: Any
) -> tuple[Cart, bool]:
    """Return a cart, and whether it is new."""
    mark = more.pop("mark", "")
    return await store.carts.post(
        uid, manifest(files, mark=mark), bundle=False, now=10, viewer=viewer, **more
    )


async def posted(store: Store, viewer: Viewer, uid: str = "u", files: int = 2, **more: Any) -> Cart:
    cart, new = await post(store, viewer, uid, files, **more)
    assert new
    return cart


class TestVisibility:
    @pytest_twisted.ensureDeferred
    async def test_a_cart_is_visible_to_its_owner_and_to_admins(self, store: Store) -> None:
        cart = await posted(store, ADA)
        assert cart.owner == "ada"
        for viewer, seen in {ADA: cart, BOB: None, ROOT: cart, UNRESTRICTED: cart}.items():
            assert await store.carts.newest_for(viewer, "u") == seen
            assert await store.carts.carts_for(viewer, "u") == ([] if seen is None else [seen])
        assert await store.carts.newest("u") == cart

    @pytest_twisted.ensureDeferred
    async def test_a_cart_without_an_owner_is_invisible_to_users(self, store: Store) -> None:
        cart = await posted(store, UNRESTRICTED)
        assert cart.owner is None
        assert await store.carts.newest_for(ADA, "u") is None
        assert await store.carts.newest_for(ROOT, "u") == cart

    @pytest_twisted.ensureDeferred
    async def test_users_see_their_newest_cart_and_admins_the_newest(self, store: Store) -> None:
        first, second = await posted(store, ADA), await posted(store, ADA, mark="second")
        bobs = await posted(store, BOB)
        assert await store.carts.newest_for(ADA, "u") == second
        assert (
            await store.carts.newest_for(BOB, "u")
            == await store.carts.newest_for(ROOT, "u")
            == bobs
        )
        assert await store.carts.carts_for(ADA, "u") == [second, first]
        assert await store.carts.carts_for(ROOT, "u") == [bobs, second, first]
        await deleted(store, second)
        assert await store.carts.newest_for(ADA, "u") == first

    @pytest_twisted.ensureDeferred
    async def test_concurrent_lookups_are_not_mixed_up(self, store: Store) -> None:
        """Some users' names are other users' uids."""
        names = [f"n{number}" for number in range(50)]
        carts = {
            (name, uid): await posted(store, Viewer.of(User(name)), uid, 0)
            for name, uid in zip(names, [*names[1:], names[0]], strict=True)
        }
        for name in names:
            carts[name, "same"] = await posted(store, Viewer.of(User(name)), "same", 0)
        wanted = [(name, uid) for name in names for uid in (*names[:3], "same")]
        seen = await gathered(
            [store.carts.newest_for(Viewer.of(User(name)), uid) for name, uid in wanted]
        )
        assert seen == [carts.get(pair) for pair in wanted]


class TestPostingAgain:
    @pytest_twisted.ensureDeferred
    async def test_a_repost_finds_the_users_own_cart_behind_a_newer_one(self, store: Store) -> None:
        mine = await posted(store, ADA)
        other = await posted(store, BOB)
        assert await is_posted_again(mine, post(store, ADA))
        assert await is_posted_again(other, post(store, BOB))

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("viewer", [ROOT, UNRESTRICTED], ids=["admin", "no authentication"])
    async def test_a_repost_by_an_admin_reuses_only_their_own_newest_cart(
        self, store: Store, viewer: Viewer
    ) -> None:
        own = await posted(store, viewer)
        assert await is_posted_again(own, post(store, viewer))
        await posted(store, ADA)
        # The older one would be found, but ada's would answer.
        again = await posted(store, viewer)
        assert (again.owner, await store.carts.newest_for(viewer, "u")) == (viewer.owner, again)
        assert again.id != own.id


async def is_posted_again(cart: Cart, posting: Coroutine[Any, Any, tuple[Cart, bool]]) -> bool:
    """Whether the post returns ``cart``, changed only in the time of its last use."""
    again, new = await posting
    assert again.used > cart.used
    return not new and replace(again, used=cart.used) == cart


async def rejection_of(store: Store, viewer: Viewer, **given: Any) -> str | None:
    """Return the name of the exceeded limit."""
    before = await store.carts.active()
    with pytest.raises(QuotaExceeded) as error:
        await post(store, viewer, "more", mark="more", **given)
    assert await store.carts.active() == before
    return error.value.limit


class TestUnfinished:
    @pytest_twisted.ensureDeferred
    async def test_the_unfinished_carts_of_all_users_count(self, store: Store) -> None:
        carts = [
            await posted(store, viewer, str(viewer)) for viewer in (ADA, BOB, ROOT, UNRESTRICTED)
        ]
        assert await store.carts.unfinished() == 4
        for cart in carts[:2]:
            await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_ready(carts[0].id, "me", volume_bytes=0, now=12)
        assert await store.carts.unfinished() == 3
        await store.progress.record_error(
            carts[1].id, "me", "x", position=None, file_error="", now=12
        )
        assert await store.carts.unfinished() == 2
        await deleted(store, carts[2])
        assert await store.carts.unfinished() == 1


class TestQuota:
    @pytest_twisted.ensureDeferred
    async def test_a_quota_counts_the_users_own_unfinished_carts(self, store: Store) -> None:
        limits = UserQuota(carts=2)
        for viewer in (BOB, BOB, ROOT, UNRESTRICTED):
            await posted(store, viewer, mark=str(await store.carts.active()))
        ready, failed = await posted(store, ADA, "ready"), await posted(store, ADA, "failed")
        assert await rejection_of(store, ADA, limits=limits) == "auth.max_carts_staging"
        await store.leases.claim(ready.id, "me", now=10, until=100)
        await store.progress.record_ready(ready.id, "me", volume_bytes=0, now=12)
        gone = await posted(store, ADA, "gone", limits=limits)
        assert await rejection_of(store, ADA, limits=limits) == "auth.max_carts_staging"
        await store.leases.claim(failed.id, "me", now=10, until=100)
        await store.progress.record_error(
            failed.id, "me", "x", position=None, file_error="", now=12
        )
        await deleted(store, gone)
        await posted(store, ADA, "one", limits=limits)
        await posted(store, ADA, "two", limits=limits)
        assert await rejection_of(store, ADA, limits=limits) == "auth.max_carts_staging"

    @pytest_twisted.ensureDeferred
    async def test_a_quota_counts_files_until_they_are_staged(self, store: Store) -> None:
        limits = UserQuota(files=5)
        cart = await posted(store, ADA, files=3, limits=limits)
        assert await rejection_of(store, ADA, files=3, limits=limits) == "auth.max_files"
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await posted(store, ADA, "fits", files=3, limits=limits)
        assert await rejection_of(store, ADA, files=1, limits=limits) == "auth.max_files"

    @pytest_twisted.ensureDeferred
    async def test_a_quota_counts_bytes_from_lookup_until_they_are_staged(
        self, store: Store
    ) -> None:
        limits = UserQuota(bytes=100)
        cart = await posted(store, ADA, limits=limits)
        await posted(store, ADA, "unknown", limits=limits)
        await store.leases.claim(cart.id, "me", now=10, until=100)
        await store.progress.record_states(cart.id, "me", [(0, 60, 5), (1, 60, 5)])
        await posted(store, ADA, "unknown too", limits=limits)
        await store.progress.reserve(cart.id, "me", bytes_total=120, volume_bytes=120)
        assert await rejection_of(store, ADA, limits=limits) == "auth.max_bytes"
        await store.progress.record_staged(cart.id, "me", [(0, SHA1)], now=11)
        await posted(store, ADA, "known", limits=limits)

    @pytest_twisted.ensureDeferred
    async def test_reposting_a_cart_never_exceeds_the_quota(self, store: Store) -> None:
        cart = await posted(store, ADA)
        assert await is_posted_again(cart, post(store, ADA, limits=UserQuota(carts=1, files=1)))

    @pytest_twisted.ensureDeferred
    async def test_concurrent_posts_to_two_nodes_do_not_exceed_the_quota(
        self, store: Store, database: str
    ) -> None:
        other = Store(database, the_reactor())

        async def attempt(number: int) -> bool:
            try:
                await post((store, other)[number % 2], ADA, f"u{number}", limits=UserQuota(carts=3))
            except QuotaExceeded:
                return False
            return True

        taken = await gathered([attempt(number) for number in range(24)])
        assert sum(taken) == 3 == len(await store.carts.active())
        # Other users have not waited for this lock.
        assert (await found(other, await posted(other, BOB))).status is CartStatus.STAGING
        await other.close()


@pytest.mark.parametrize(
    ("statement", "by"),
    [
        (lookups._NEWEST_OF_OWNERS, "cart_owner_uid_id (owner=? AND cart_uid=?)"),
        (carts._NEWEST_OF_OWNER, "cart_owner_uid_id (owner=? AND cart_uid=?)"),
        (carts._OUTSTANDING, "cart_owner_status (owner=? AND status=?)"),
    ],
    ids=["of many", "of one", "outstanding"],
)
def test_queries_for_one_user_use_the_owner_index(
    statement: Executable, by: str, synced_sqlite: Path
) -> None:
    """So the time does not depend on the number of other users' carts of the same uid."""
    parameters = {"owners": ["a", "b"], "uids": ["u"], "owner": "a", "uid": "u"}
    assert f"SEARCH cart USING INDEX {by}" in plan_of(statement, parameters, synced_sqlite)


@pytest.mark.parametrize(
    ("statement", "by"),
    [
        (leases._HOLDERS, "SEARCH cart USING INDEX cart_leased (lease_holder>?)"),
        (leases._RENEW, "SEARCH cart USING INDEX cart_leased (lease_holder=?)"),
        (leases._RENEWED, "SEARCH cart USING INDEX cart_leased (lease_holder=?)"),
        (removals._EVICTING, "SCAN cart USING INDEX cart_evicting"),
    ],
    ids=["holders", "renew", "renewed", "evicting"],
)
def test_polling_queries_do_not_read_ready_carts(
    statement: Executable, by: str, synced_sqlite: Path
) -> None:
    assert by in plan_of(statement, {"holder": "a", "until": 0.0}, synced_sqlite)


def plan_of(statement: Executable, parameters: dict[str, Any], database: Path) -> list[str]:
    executed: list[Any] = []
    engine = create_engine(sqlite_url(database), poolclass=NullPool)
    event.listen(engine, "before_cursor_execute", lambda *given: executed.extend(given[2:4]))
    with engine.connect() as connection:
        connection.execute(statement, parameters)
        text, values = executed
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)
        return [row[-1] for row in plan]
