"""Making and upgrading the schema: from nothing, from Pacifica's versions, or not at all."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from cartd.errors import ConfigError, Unavailable
from cartd.model import CartStatus, FileStatus
from cartd.store import (
    Condition,
    Store,
    UpgradeError,
    schema_state,
    sync,
    wait_for_database,
)
from cartd.store.tables import metadata
from tests.databases import Postgres, sqlite_url, the_reactor
from tests.pacifica_schema import VERSIONS, add_cart, begin, insert, make_tables

pytest_plugins = ("tests.database_fixtures",)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["UTC", "America/New_York"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where this process believes to be: Pacifica wrote local times."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def file(path: str, **values: Any) -> dict[str, Any]:
    return {"file_name": path, "bundle_path": path, **values}


def as_it_is(url: str) -> dict[str, Any]:
    """All tables with their columns and rows."""
    with begin(url) as connection:
        inspector = inspect(connection)
        return {
            name: (
                [column["name"] for column in inspector.get_columns(name)],
                [index["name"] for index in inspector.get_indexes(name)],
                sorted(map(repr, connection.execute(text(f'SELECT * FROM "{name}"')))),
            )
            for name in inspector.get_table_names()
        }


def differences(url: str) -> list[Any]:
    with begin(url) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_server_default": True, "compare_type": True}
        )
        return list(compare_metadata(context, metadata))


def unexpected(wait: float) -> None:
    pytest.fail(f"waited for {wait} s")


def unix(year: int, month: int, day: int, hour: int) -> float:
    return datetime(year, month, day, hour, tzinfo=UTC).timestamp()


class TestMaking:
    def test_an_empty_database_gets_the_tables_that_the_queries_expect(
        self, empty_database: str
    ) -> None:
        assert schema_state(empty_database).condition is Condition.MISSING
        assert sync(empty_database).current
        assert schema_state(empty_database).current
        assert differences(empty_database) == []

    def test_to_sync_again_changes_nothing(self, empty_database: str) -> None:
        sync(empty_database)
        before = as_it_is(empty_database)
        assert sync(empty_database).current
        assert as_it_is(empty_database) == before

    def test_other_programs_tables_may_be_there(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
        assert sync(empty_database).current

    def test_to_look_at_a_file_that_is_not_there_does_not_make_it(self, tmp_path: Path) -> None:
        path = tmp_path / "no.sqlite3"
        assert schema_state(sqlite_url(path)).condition is Condition.MISSING
        wait_for_database(sqlite_url(path), 1, 0, unexpected)
        assert not path.exists()

    def test_a_name_with_a_percent_sign_is_a_name(self, tmp_path: Path) -> None:
        url = sqlite_url(tmp_path / "100%(x)s.sqlite3")
        assert sync(url).current
        assert (tmp_path / "100%(x)s.sqlite3").exists()


class TestUpgrading:
    def test_each_version_of_pacifica_gets_the_tables_that_the_queries_expect(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
        state = schema_state(empty_database)
        assert (state.condition, state.version) == (Condition.OLDER, version)
        assert sync(empty_database).current
        assert differences(empty_database) == []

    @pytest_twisted.ensureDeferred
    async def test_carts_of_every_status_come_over(self, empty_database: str, version: str) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        carts = [await store.cart(cart_id) for cart_id in range(1, 9)]
        files = {cart_id: await store.files(cart_id) for cart_id in range(1, 9)}
        unmeasured = [cart.id for cart in await store.unmeasured()]
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
            (4, 1),
            (0, 0),
            (2, 1),
            (0, 0),
            (1, 0),
            (1, 0),
        ]
        assert all(cart and cart.fingerprint is None for cart in carts)
        assert all(cart and cart.bytes_total is None for cart in carts)
        assert unmeasured == [1, 2]
        assert [(f.position, f.path) for f in files[1]] == [(0, "b"), (1, "a"), (2, "d/c")]
        assert [(f.position, f.status, f.error) for f in files[3]] == [
            (0, FileStatus.STAGED, ""),
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
        assert [cart.id for cart in await store.unfinished()] == [3, 7, 8]
        assert await store.claim(3, "me", now=1e9, until=2e9)
        await store.record_states(3, "me", [(n, 10, 5) for n in range(4)])
        await store.record_staged(3, "me", [(n, "b" * 40) for n in (1, 2, 3)], now=1e9)
        await store.record_ready(3, "me", volume_bytes=40, now=1e9)
        cart = await store.cart(3)
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
    async def test_a_file_is_put_as_a_manifest_would(
        self, empty_database: str, old: dict[str, Any], new: tuple[str, str, str]
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, "2.0")
            add_cart(connection, 1, "ready", files=[file("p", **old)])
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        [only] = await store.files(1)
        await store.close()
        assert (only.path, only.hash_type, only.hash_sum) == new

    @pytest_twisted.ensureDeferred
    async def test_new_carts_follow_the_old_ones(self, empty_database: str, version: str) -> None:
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

    def test_pacificas_programs_find_a_version_that_they_refuse(
        self, empty_database: str, version: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
        sync(empty_database)
        with begin(empty_database) as connection:
            rows = connection.execute(text("SELECT part, value FROM cartsystem ORDER BY part"))
            assert rows.all() == [("major", 3), ("minor", 0)]

    @pytest_twisted.ensureDeferred
    async def test_more_carts_than_a_page_come_over(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, "2.0")
            for cart_id in range(1, 2502):
                add_cart(connection, cart_id, "ready", files=[file("/./p")])
        sync(empty_database)
        store = Store(empty_database, the_reactor())
        carts, last = await store.active(), await store.files(2501)
        await store.close()
        assert len(carts) == 2501
        assert {cart.files_staged for cart in carts} == {1}
        assert [only.path for only in last] == ["p"]

    @pytest.mark.parametrize("obstacle", ["file_cart_id_position", "cart_living"])
    def test_an_upgrade_that_fails_half_way_leaves_everything_as_it_was(
        self, empty_database: str, version: str, obstacle: str
    ) -> None:
        with begin(empty_database) as connection:
            make_tables(connection, version)
            fill_with_carts(connection, version)
            # What the upgrade makes last has a name that is taken.
            connection.execute(text(f"CREATE TABLE {obstacle} (id INTEGER)"))
        before = as_it_is(empty_database)
        with pytest.raises(UpgradeError, match=f"changed nothing: .*{obstacle}"):
            sync(empty_database)
        assert as_it_is(empty_database) == before
        with begin(empty_database) as connection:
            connection.execute(text(f"DROP TABLE {obstacle}"))
        assert sync(empty_database).current
        assert differences(empty_database) == []


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


async def only_cart(url: str, attribute: str) -> Any:
    sync(url)
    store = Store(url, the_reactor())
    cart = await store.cart(1)
    await store.close()
    return getattr(cart, attribute)


class TestOtherVersions:
    @pytest.mark.parametrize(
        ("found", "condition", "safe"),
        [
            ("3.0", Condition.CURRENT, True),
            ("3.1", Condition.NEWER_MINOR, True),
            ("3.12", Condition.NEWER_MINOR, True),
            ("4.0", Condition.NEWER, False),
            ("2.5", Condition.NEWER, False),
            ("1f00ba5", Condition.NEWER, False),
            ("2.0", Condition.OLDER, False),
        ],
    )
    def test_a_version_is_safe_if_it_only_adds_to_ours(
        self, database: str, found: str, condition: Condition, safe: bool
    ) -> None:
        with begin(database) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": found})
        state = schema_state(database)
        assert (state.condition, state.safe) == (condition, safe)
        assert state.current is (found == "3.0")
        assert found in state.explanation
        assert ("dbsync" in state.explanation) is (condition is Condition.OLDER)

    @pytest.mark.parametrize("found", ["4.0", "1f00ba5"])
    def test_a_database_of_the_future_is_left_alone(self, database: str, found: str) -> None:
        with begin(database) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": found})
        before = as_it_is(database)
        with pytest.raises(ConfigError, match="does not know"):
            sync(database)
        assert as_it_is(database) == before

    def test_a_newer_minor_version_stays(self, database: str) -> None:
        with begin(database) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '3.1'"))
        assert sync(database).condition is Condition.NEWER_MINOR

    def test_another_programs_cart_is_left_alone(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            connection.execute(text("CREATE TABLE cart (price INTEGER)"))
        before = as_it_is(empty_database)
        assert schema_state(empty_database).condition is Condition.FOREIGN
        with pytest.raises(ConfigError, match="another program"):
            sync(empty_database)
        assert as_it_is(empty_database) == before

    def test_a_database_without_tables_is_not_safe_and_says_what_helps(
        self, empty_database: str
    ) -> None:
        state = schema_state(empty_database)
        assert not state.safe
        assert "cartd-cmd dbsync" in state.explanation


class TestWaiting:
    def test_a_database_that_answers_is_not_waited_for(self, database: str) -> None:
        wait_for_database(database, 3, 20, unexpected)

    def test_it_is_tried_until_it_answers(self, own_postgres: Postgres) -> None:
        waits: list[float] = []

        def start_at_the_third(wait: float) -> None:
            waits.append(wait)
            if len(waits) == 3:
                own_postgres.start()

        url = own_postgres.create()
        own_postgres.stop()
        wait_for_database(url, 10, 20, start_at_the_third)
        assert waits == [20, 20, 20]

    def test_it_is_given_up_after_the_last_attempt_without_another_wait(
        self, tmp_path: Path
    ) -> None:
        waits: list[float] = []
        with pytest.raises(Unavailable):
            wait_for_database(sqlite_url(tmp_path / "no" / "db"), 3, 7, waits.append)
        assert waits == [7, 7]

    def test_a_server_that_is_away_is_unavailable(self, own_postgres: Postgres) -> None:
        url = own_postgres.create()
        own_postgres.stop()
        with pytest.raises(Unavailable):
            schema_state(url)
        with pytest.raises(Unavailable):
            sync(url)
        own_postgres.start()
        assert sync(url).current
