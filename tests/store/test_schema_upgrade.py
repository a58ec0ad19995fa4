"""Databases of Pacifica Cartd are upgraded with all carts, or not changed at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, text

from cartd.model import CartStatus, FileStatus
from cartd.store import (
    SchemaCondition,
    Store,
    UpgradeError,
    schema_state,
    sync,
)
from tests.support.databases import the_reactor
from tests.support.pacifica_schema import VERSIONS, add_cart, begin, insert, make_tables
from tests.support.schema_content import as_it_is, differences
from tests.support.stored_carts import SHA1, claimed, found, posted

pytest_plugins = ("tests.support.database_fixtures",)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["UTC", "America/New_York"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The time zone of this process: Pacifica wrote local times."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def file(path: str, **values: Any) -> dict[str, Any]:
    return {"file_name": path, "bundle_path": path, **values}


def unix(year: int, month: int, day: int, hour: int) -> float:
    return datetime(year, month, day, hour, tzinfo=UTC).timestamp()


async def only_cart(url: str, attribute: str) -> Any:
    sync(url)
    store = Store(url, the_reactor())
    cart = await store.carts.cart(1)
    await store.close()
    return getattr(cart, attribute)


class TestUpgrading:
    def test_each_version_of_pacifica_gets_the_expected_tables(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
        state = schema_state(empty_database)
        assert (state.condition, state.version) == (SchemaCondition.OLDER, version)
        assert sync(empty_database).current
        assert differences(empty_database) == []

    @pytest_twisted.ensureDeferred
    async def test_carts_of_every_status_are_migrated(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        carts = [await store.carts.cart(cart_id) for cart_id in range(1, 9)]
        files = {cart_id: await store.carts.files(cart_id) for cart_id in range(1, 9)}
        unmeasured = [cart.id for cart in await store.carts.unmeasured()]
        await store.close()

        assert [(cart and (cart.status, cart.bundle, cart.error)) for cart in carts] == [
            (CartStatus.READY, False, ""),
            (CartStatus.READY, True, ""),
            (CartStatus.STAGING, False, ""),
            (CartStatus.ERROR, False, "The manifest was lost with the old queue; post it again"),
            (CartStatus.ERROR, False, "Failed to pull file(no)"),
            (CartStatus.DELETED, False, ""),
            (CartStatus.WAITING, False, ""),
            (CartStatus.WAITING, False, ""),
        ]
        assert [cart and (cart.files_total, cart.files_staged) for cart in carts] == [
            (3, 3),
            (1, 1),
            (4, 0),
            (0, 0),
            (2, 1),
            (0, 0),
            (1, 0),
            (1, 0),
        ]
        assert all(cart and cart.fingerprint is None for cart in carts)
        assert all(cart and cart.bytes_total is None for cart in carts)
        assert unmeasured == [1, 2, 4, 5]
        assert [(f.position, f.path) for f in files[1]] == [(0, "b"), (1, "a"), (2, "d/c")]
        assert [(f.position, f.status, f.error) for f in files[3]] == [
            (0, FileStatus.WAITING, ""),
            (1, FileStatus.WAITING, ""),
            (2, FileStatus.WAITING, ""),
            (3, FileStatus.WAITING, ""),
        ]
        assert [(f.status, f.error) for f in files[5]] == [
            (FileStatus.STAGED, ""),
            (FileStatus.ERROR, "no"),
        ]
        assert [f.status for f in files[8]] == [FileStatus.WAITING]

    @pytest_twisted.ensureDeferred
    async def test_an_upgraded_cart_can_be_finished(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        assert await store.leases.claimable("me", now=1e9) == [3, 7, 8]
        assert await store.leases.claim(3, "me", now=1e9, until=2e9)
        await store.progress.record_states(3, "me", [(n, 10, 5) for n in range(4)])
        await store.progress.record_staged(3, "me", [(n, "b" * 40) for n in range(4)], now=1e9)
        await store.progress.record_ready(3, "me", volume_bytes=40, now=1e9)
        cart = await store.carts.cart(3)
        await store.close()
        assert cart is not None
        assert (cart.status, cart.files_staged, cart.bytes_staged) == (CartStatus.READY, 4, 40)

    @pytest.mark.parametrize(
        ("version", "bundle", "path", "bundled"),
        [
            ("0.1", None, "/v/1/u.tar", True),
            ("0.1", None, "/v/1/u", False),
            ("1.0", False, "/v/1/u.tar", True),
            ("1.0", None, "/v/1/u", False),
            ("2.0", True, "", True),
            ("2.0", None, "", False),
            ("2.0", False, "C:\\v\\1\\u.tar", True),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_bundle_is_known_by_its_flag_or_its_path(
        self, empty_database: str, version: str, bundle: bool | None, path: str, bundled: bool
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            add_cart(connection, 1, "ready", bundle=bundle, bundle_path=path)
        assert await only_cart(empty_database, "bundle") is bundled

    @pytest_twisted.ensureDeferred
    async def test_a_uid_that_ends_like_a_tar_makes_no_bundle(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, "0.1")
            add_cart(connection, 1, "ready", uid="x.tar", bundle_path="/v/1/x.tar")
        assert await only_cart(empty_database, "bundle") is False

    @pytest_twisted.ensureDeferred
    async def test_local_times_become_utc_with_their_own_summer_times(
        self, empty_database: str, time_zone: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, "2.0")
            add_cart(connection, 1, "ready")
        west = {"UTC": (0, 0), "America/New_York": (5, 4)}[time_zone]
        created = unix(2020, 1, 15, 12 + west[0])
        updated = unix(2020, 7, 15, 12 + west[1]) + 0.25
        assert await only_cart(empty_database, "created") == created
        assert await only_cart(empty_database, "updated") == updated
        assert await only_cart(empty_database, "used") == updated

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"hash_type": None, "hash_value": None}, ("p", "", "")),
            ({"hash_type": "sha1", "hash_value": "ABCDEF"}, ("p", "sha1", "abcdef")),
            ({"bundle_path": "/p"}, ("p", "sha1", "a" * 40)),
            ({"bundle_path": "//d//p"}, ("d/p", "sha1", "a" * 40)),
            ({"bundle_path": "./d/./p"}, ("d/p", "sha1", "a" * 40)),
            ({"bundle_path": "d/../p"}, ("d/../p", "sha1", "a" * 40)),
        ],
        ids=["no hash", "capitals", "leading /", "empty parts", "dots", "two dots"],
    )
    @pytest_twisted.ensureDeferred
    async def test_paths_and_hashes_are_normalized(
        self, empty_database: str, old: dict[str, Any], new: tuple[str, str, str]
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, "2.0")
            add_cart(connection, 1, "ready", files=[file("p", **old)])
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        [only] = await store.carts.files(1)
        await store.close()
        assert (only.path, only.hash_type, only.hash_sum) == new

    @pytest_twisted.ensureDeferred
    async def test_new_carts_get_ids_after_migrated_ones(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            add_cart(connection, None, "ready")
        sync(empty_database)
        with begin(empty_database) as connection:
            connection.execute(
                text(
                    "INSERT INTO cart (cart_uid, creation_date, updated_date, used_date, status,"
                    " error) SELECT cart_uid, creation_date, updated_date, used_date, status,"
                    " error FROM cart"
                )
            )
            assert connection.scalars(text("SELECT id FROM cart ORDER BY id")).all() == [1, 2]

    def test_pacificas_programs_find_a_version_that_they_reject(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
        sync(empty_database)
        with begin(empty_database) as connection:
            rows = connection.execute(text("SELECT part, value FROM cartsystem ORDER BY part"))
            assert rows.all() == [("major", 3), ("minor", 0)]

    @pytest_twisted.ensureDeferred
    async def test_more_carts_than_a_page_are_migrated(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, "2.0")
            for cart_id in range(1, 2502):
                add_cart(connection, cart_id, "ready", files=[file("/./p")])
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        carts, last = await store.carts.active(), await store.carts.files(2501)
        await store.close()
        assert len(carts) == 2501
        assert {cart.files_staged for cart in carts} == {1}
        assert [only.path for only in last] == ["p"]

    @pytest_twisted.ensureDeferred
    async def test_ids_go_beyond_32_bits(self, empty_database: str, version: str) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
        sync(empty_database)
        await assert_ids_go_beyond_32_bits(empty_database)

    @pytest_twisted.ensureDeferred
    async def test_ids_of_a_new_database_go_beyond_32_bits(self, empty_database: str) -> None:
        sync(empty_database)
        await assert_ids_go_beyond_32_bits(empty_database)

    @pytest_twisted.ensureDeferred
    async def test_the_id_of_a_cart_whose_row_has_gone_is_never_used_again(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT setval('cart_id_seq', 8)"))
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        for _ in range(2):
            newest = await posted(store, "new")
            with begin(empty_database) as connection:
                connection.execute(text("DELETE FROM file WHERE cart_id >= 8"))
                connection.execute(text("DELETE FROM cart WHERE id >= 8"))
        await store.close()
        assert newest.id == 10

    @pytest.mark.parametrize("obstacle", ["file_cart_id_position", "cart_living"])
    def test_a_failed_upgrade_changes_nothing(
        self, empty_database: str, version: str, obstacle: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
            # The last table that the upgrade creates exists already.
            connection.execute(text(f"CREATE TABLE {obstacle} (id INTEGER)"))
        before = as_it_is(empty_database)
        with pytest.raises(UpgradeError, match=f"changed nothing: .*{obstacle}"):
            sync(empty_database)
        assert as_it_is(empty_database) == before
        with begin(empty_database) as connection:
            connection.execute(text(f"DROP TABLE {obstacle}"))
        assert sync(empty_database).current
        assert differences(empty_database) == []


async def assert_ids_go_beyond_32_bits(url: str) -> None:
    last = 2**31 - 1
    with begin(url) as connection:
        if connection.dialect.name == "postgresql":
            for table in ("cart", "file", "dirty_files"):
                connection.execute(text(f"SELECT setval('{table}_id_seq', {last})"))
        else:
            connection.execute(text("DELETE FROM sqlite_sequence"))
            for table in ("cart", "dirty_files"):
                insert(connection, "sqlite_sequence", name=table, seq=last)
    store = Store(url, the_reactor())
    cart = await claimed(store, "far", 2)
    assert cart.id > last
    await store.progress.record_states(cart.id, "me", [(0, 1, 1), (1, 1, 1)])
    await store.progress.record_staged(cart.id, "me", [(0, SHA1), (1, SHA1)], now=11)
    duplicate = await claimed(store, "duplicate", 2)
    [first, _] = await store.dedup.duplicates(duplicate.id, range(2))
    assert not await store.dedup.record_linked(duplicate.id, "me", [first])
    assert (await found(store, duplicate)).bytes_linked == 1
    await store.close()


def fill_with_carts(connection: Connection, version: str) -> None:
    """Carts 1 to 8, in all states that Pacifica left."""
    no, yes = (None, None) if version == "0.1" else (False, True)
    three = [file("b"), file("a"), file("/d/c")]
    mixed = [
        file("a"),
        file("b", status="staging"),
        file("c", status="waiting"),
        file("d", status="error", error="Failed to pull"),
    ]
    failed = [file("a"), file("b", status="error", error="no")]
    waiting = [file("a", status="waiting")]
    add_cart(connection, 1, "ready", bundle=no, bundle_path="/v/1/u", files=three)
    add_cart(connection, 2, "ready", bundle=yes, bundle_path="/v/2/u.tar", files=[file("a")])
    add_cart(connection, 3, "staging", bundle=no, files=mixed)
    add_cart(connection, 4, "staging", bundle=no)
    add_cart(connection, 5, "error", error="Failed to pull file(no)", files=failed)
    add_cart(connection, 6, "deleted", deleted="2020-08-01 00:00:00")
    add_cart(connection, 7, "waiting", files=waiting)
    add_cart(connection, 8, "unheard of", files=[file("a", status="unheard of")])
    if version == "2.0":
        insert(connection, "carttasks", cart_id=1, celery_task_id="x")
