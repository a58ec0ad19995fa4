"""Errors of a real database: retried, reported at once, or rejected because of the data."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import pytest_twisted
from sqlalchemy import insert, make_url

from cartd.errors import DatabaseUnavailable, StatementRejected
from cartd.store import Store, schema_state, sync, wait_for_database
from cartd.store.tables import file
from tests.support.archive_faults import Gate, halted
from tests.support.archived_carts import in_a_thread, manifest_of, stage, url_of
from tests.support.databases import Postgres, database_unavailable, sqlite_url, the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import running_cartd, wait_for
from tests.support.stored_carts import posted
from tests.support.with_values import with_values

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

NOBODY = 65534


def unexpected(*_: object) -> None:
    raise AssertionError("it was waited for")


class TestAtTheStart:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"database": "nodb"}, 'database "nodb" does not exist'),
            ({"username": "norole"}, 'role "norole" does not exist'),
        ],
    )
    def test_a_permanent_failure_is_reported_without_retries(
        self, change: dict[str, str], reason: str, postgres: Postgres
    ) -> None:
        url = make_url(postgres.url("synced")).set(**change)  # type: ignore[arg-type]
        with database_unavailable(reason):
            wait_for_database(url.render_as_string(False), 10, 20, unexpected, unexpected)

    def test_a_wrong_password_is_reported_without_retries(self, own_postgres: Postgres) -> None:
        own_postgres.execute("CREATE ROLE carts LOGIN PASSWORD 'right'")
        data = make_url(own_postgres.url("postgres")).query["host"]
        hba = Path(str(data)) / "pg_hba.conf"
        hba.write_text(f"local all carts scram-sha-256\n{hba.read_text()}")
        own_postgres.execute("SELECT pg_reload_conf()")
        url = f"postgresql+psycopg://carts:wrong-secret@/postgres?host={data}"
        with database_unavailable("password authentication failed"):
            wait_for_database(url, 10, 20, unexpected, unexpected)
        with database_unavailable("no password supplied"):
            wait_for_database(url.replace(":wrong-secret", ""), 10, 20, unexpected, unexpected)

    def test_a_server_without_free_connections_is_retried(self, postgres: Postgres) -> None:
        url = postgres.create()
        name = make_url(url).database
        postgres.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        postgres.execute("CREATE ROLE limited LOGIN")
        waited: list[object] = []
        with database_unavailable("too many connections"):
            wait_for_database(
                make_url(url).set(username="limited").render_as_string(False), 3, 7, waited.append
            )
        assert waited == [7, 7]
        postgres.execute("DROP ROLE limited")
        postgres.drop(url)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave a file to another account")
    @pytest.mark.parametrize("end", ["", "-wal"])
    def test_a_sqlite_file_of_another_account_is_reported_with_both(
        self, end: str, tmp_path: Path
    ) -> None:
        tmp_path.chmod(0o777)
        path = tmp_path / "cartd.sqlite3"
        sync(sqlite_url(path))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        path.chmod(0o666)
        foreign = Path(f"{path}{end}")
        foreign.touch()
        foreign.chmod(0o600)
        ours, theirs = get_context("fork").Pipe()
        asking = get_context("fork").Process(
            target=_connect_as_nobody, args=(sqlite_url(path), tmp_path, theirs)
        )
        asking.start()
        answer = ours.recv()
        asking.join()
        assert answer == (
            False,
            f"{foreign}: permission denied (owner root, mode 600; cartd runs as nobody)",
        )


def _connect_as_nobody(url: str, directory: Path, answer: Connection) -> None:
    for parent in directory.parents:
        if parent != Path("/tmp") and parent != Path("/"):
            parent.chmod(0o755)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        wait_for_database(url, 10, 20, unexpected, unexpected)
        with_file = schema_state(url)
        answer.send(with_file)
    except DatabaseUnavailable as error:
        answer.send((error.transient, error.reason))


class TestWhileItRuns:
    @pytest_twisted.ensureDeferred
    async def test_data_errors_are_rejected_without_showing_sql(self, store: Store) -> None:
        held = await posted(store)
        twice = {
            "cart_id": held.id,
            "position": 0,
            "file_name": "secret-name",
            "bundle_path": "p",
            "hash_type": "",
            "hash_value": "",
            "status": "waiting",
            "error": "",
        }
        with pytest.raises(StatementRejected) as raised:
            async with store._database.transaction() as transaction:
                await transaction.execute(insert(file), twice)
        assert re.search("UniqueViolation 23505|IntegrityError", str(raised.value))
        for word in ("secret", "INSERT", "file_cart_id"):
            assert word not in str(raised.value)

    @pytest.mark.parametrize(
        ("harm", "mend", "reason"),
        [
            (
                "ALTER TABLE dirty_files RENAME TO away",
                "ALTER TABLE away RENAME TO dirty_files",
                'relation "dirty_files" does not exist',
            ),
            (
                "ALTER SEQUENCE dirty_files_id_seq MAXVALUE 99;"
                " SELECT setval('dirty_files_id_seq', 99)",
                "ALTER SEQUENCE dirty_files_id_seq NO MAXVALUE",
                "reached maximum value of sequence",
            ),
            (
                "ALTER DATABASE {} SET default_transaction_read_only = on",
                "ALTER DATABASE {} RESET default_transaction_read_only",
                "in a read-only transaction",
            ),
        ],
        ids=["table away", "sequence exhausted", "read-only"],
    )
    @in_a_thread
    def test_environment_errors_fail_no_cart(
        self,
        harm: str,
        mend: str,
        reason: str,
        archive: FaultyArchive,
        postgres: Postgres,
        tmp_path: Path,
    ) -> None:
        url = postgres.create(template="synced")
        name = make_url(url).database or ""
        gate = Gate()
        with running_cartd(tmp_path, archive=url_of(archive), database=url, started=False) as cartd:
            cartd.program = with_values(cartd.twistd, {"cartd.staging.stager.CLAIM_INTERVAL": 0.2})
            cartd.start()
            stage(cartd, archive, "before", 1000)
            archive.fault("cart-0", halted(10, gate), method="GET")
            assert cartd.post("cart", manifest_of(archive, "cart", 1000)).status == 201
            wait_for(lambda: archive.seen("GET", "cart-0"))
            postgres.execute_in(url, harm.format(name))
            postgres.terminate_connections(url)
            the_reactor().callFromThread(gate.open)
            wait_for(lambda: reason in cartd.log)
            assert cartd.status("cart")[0] == "staging"
            postgres.execute_in(url, mend.format(name), read_write=True)
            postgres.terminate_connections(url)
            cartd.wait_until("cart", "ready")
            wait_for(lambda: "The database is available again" in cartd.log)
            assert cartd.terminate() == 0
        postgres.drop(url)
