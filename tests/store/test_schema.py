"""Creating the schema, reporting its version, waiting for the database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from cartd.errors import ConfigError, Unavailable
from cartd.store import (
    SchemaCondition,
    schema_state,
    sync,
    wait_for_database,
)
from tests.support.databases import Postgres, sqlite_url
from tests.support.pacifica_schema import begin
from tests.support.schema_content import as_it_is, differences

pytest_plugins = ("tests.support.database_fixtures",)


def unexpected(wait: float) -> None:
    pytest.fail(f"waited for {wait} s")


class TestMaking:
    def test_an_empty_database_gets_the_expected_tables(self, empty_database: str) -> None:
        assert schema_state(empty_database).condition is SchemaCondition.MISSING
        assert sync(empty_database).current
        assert schema_state(empty_database).current
        assert differences(empty_database) == []

    def test_a_second_sync_changes_nothing(self, empty_database: str) -> None:
        sync(empty_database)
        before = as_it_is(empty_database)
        assert sync(empty_database).current
        assert as_it_is(empty_database) == before

    def test_other_programs_tables_may_be_there(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
        assert sync(empty_database).current

    def test_checking_a_missing_file_does_not_create_it(self, tmp_path: Path) -> None:
        path = tmp_path / "no.sqlite3"
        assert schema_state(sqlite_url(path)).condition is SchemaCondition.MISSING
        wait_for_database(sqlite_url(path), 1, 0, unexpected)
        assert not path.exists()

    def test_a_name_with_a_percent_sign_is_a_name(self, tmp_path: Path) -> None:
        url = sqlite_url(tmp_path / "100%(x)s.sqlite3")
        assert sync(url).current
        assert (tmp_path / "100%(x)s.sqlite3").exists()


class TestOtherVersions:
    @pytest.mark.parametrize(
        ("found", "condition", "safe"),
        [
            ("3.0", SchemaCondition.CURRENT, True),
            ("3.1", SchemaCondition.NEWER_MINOR, True),
            ("3.12", SchemaCondition.NEWER_MINOR, True),
            ("4.0", SchemaCondition.NEWER, False),
            ("2.5", SchemaCondition.NEWER, False),
            ("1f00ba5", SchemaCondition.NEWER, False),
            ("2.0", SchemaCondition.OLDER, False),
        ],
    )
    def test_a_newer_minor_version_is_safe(
        self, database: str, found: str, condition: SchemaCondition, safe: bool
    ) -> None:
        with begin(database) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": found})
        state = schema_state(database)
        assert (state.condition, state.safe) == (condition, safe)
        assert state.current is (found == "3.0")
        assert found in state.explanation
        assert ("dbsync" in state.explanation) is (condition is SchemaCondition.OLDER)

    @pytest.mark.parametrize("found", ["4.0", "1f00ba5"])
    def test_a_newer_major_version_is_not_changed(self, database: str, found: str) -> None:
        with begin(database) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": found})
        before = as_it_is(database)
        with pytest.raises(ConfigError, match="does not support"):
            sync(database)
        assert as_it_is(database) == before

    def test_a_newer_minor_version_is_not_changed(self, database: str) -> None:
        with begin(database) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '3.1'"))
        assert sync(database).condition is SchemaCondition.NEWER_MINOR

    def test_another_programs_cart_table_is_not_changed(self, empty_database: str) -> None:
        with begin(empty_database) as connection:
            connection.execute(text("CREATE TABLE cart (price INTEGER)"))
        before = as_it_is(empty_database)
        assert schema_state(empty_database).condition is SchemaCondition.FOREIGN
        with pytest.raises(ConfigError, match="another program"):
            sync(empty_database)
        assert as_it_is(empty_database) == before

    def test_a_database_without_tables_is_not_safe_and_explains_why(
        self, empty_database: str
    ) -> None:
        state = schema_state(empty_database)
        assert not state.safe
        assert "cartd-cmd dbsync" in state.explanation


class TestWaiting:
    def test_a_database_that_answers_is_used_at_once(self, database: str) -> None:
        wait_for_database(database, 3, 20, unexpected)

    def test_connecting_is_retried_until_the_database_answers(self, own_postgres: Postgres) -> None:
        waits: list[float] = []

        def start_at_the_third(wait: float) -> None:
            waits.append(wait)
            if len(waits) == 3:
                own_postgres.start()

        url = own_postgres.create()
        own_postgres.stop()
        wait_for_database(url, 10, 20, start_at_the_third)
        assert waits == [20, 20, 20]

    def test_connecting_fails_after_the_last_attempt_without_a_wait(self, tmp_path: Path) -> None:
        waits: list[float] = []
        with pytest.raises(Unavailable):
            wait_for_database(sqlite_url(tmp_path / "no" / "db"), 3, 7, waits.append)
        assert waits == [7, 7]

    def test_a_stopped_server_is_unavailable(self, own_postgres: Postgres) -> None:
        url = own_postgres.create()
        own_postgres.stop()
        with pytest.raises(Unavailable):
            schema_state(url)
        with pytest.raises(Unavailable):
            sync(url)
        own_postgres.start()
        assert sync(url).current
