"""The service while its SQLite file is locked, its disk full, or the file moved."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.archive_faults import Gate, halted
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import UNAVAILABLE, the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for
from tests.support.with_values import with_values

pytest_plugins = ("tests.support.archive_fixtures",)

SOON = {
    "cartd.store.engine.BUSY_TIMEOUT": 0.3,
    "cartd.staging.stager.CLAIM_INTERVAL": 0.5,
    # Every download has an access time to write.
    "cartd.carts.download.TOUCH_INTERVAL": -1.0,
}


@contextmanager
def short_timeout_cartd(directory: Path, archive: FaultyArchive) -> Iterator[RunningCartd]:
    with running_cartd(directory, archive=url_of(archive), started=False) as cartd:
        cartd.program = with_values(cartd.twistd, SOON)
        cartd.start()
        yield cartd
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def file_of(cartd: RunningCartd) -> Path:
    return cartd.directory / "cartd.sqlite3"


def refusal_of(cartd: RunningCartd, body: bytes) -> str:
    """The error for a client whose cart is rejected for now."""
    answer = cartd.post("refused", body)
    assert answer.status == 503
    assert answer.headers["retry-after"]
    return str(answer.json["message"])


@in_a_thread
def test_a_locked_sqlite_file_can_still_be_read(archive: FaultyArchive, tmp_path: Path) -> None:
    gate = Gate()
    with short_timeout_cartd(tmp_path, archive) as cartd:
        stage(cartd, archive, "mine", 1000)
        archive.fault("slow-0", halted(10, gate), method="GET")
        cartd.post("slow", manifest_of(archive, "slow", 100))
        wait_for(lambda: archive.seen("GET", "slow-0"))
        with closing(sqlite3.connect(file_of(cartd), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            the_reactor().callFromThread(gate.open)
            assert cartd.status("mine") == ("ready", "")
            assert cartd.download("mine") == {"dir/file-0": content("mine-0", 1000)}
            error = refusal_of(cartd, manifest_of(archive, "refused", 10))
            assert error == UNAVAILABLE
            assert "The database cannot be used: database is locked" in cartd.log
            assert cartd.status("slow")[0] == "staging"
        cartd.wait_until("slow", "ready")
        stage(cartd, archive, "refused", 10)


@in_a_thread
def test_staging_waits_while_the_databases_disk_is_full(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with short_timeout_cartd(tmp_path, archive) as cartd:
        stage(cartd, archive, "mine", 1000)
        assert cartd.process is not None
        limits = resource.prlimit(cartd.process.pid, resource.RLIMIT_FSIZE)
        full = file_of(cartd).with_name("cartd.sqlite3-wal").stat().st_size
        assert len(cartd.log) < full / 2  # the log has space still
        resource.prlimit(cartd.process.pid, resource.RLIMIT_FSIZE, (full, limits[1]))
        error = refusal_of(cartd, manifest_of(archive, "refused", 1000, files=500))
        assert error == UNAVAILABLE
        assert "The database cannot be used: disk I/O error" in cartd.log
        assert cartd.download("mine") == {"dir/file-0": content("mine-0", 1000)}
        resource.prlimit(cartd.process.pid, resource.RLIMIT_FSIZE, limits)
        stage(cartd, archive, "refused", 1000, files=500)


@in_a_thread
def test_a_moved_sqlite_file_is_reported_and_used_once_back(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with short_timeout_cartd(tmp_path, archive) as cartd:
        stage(cartd, archive, "mine", 1000)
        file, away = file_of(cartd), tmp_path / "away"
        file.rename(away)
        error = refusal_of(cartd, manifest_of(archive, "refused", 10))
        assert error == UNAVAILABLE
        assert "The database cannot be used: unable to open database file" in cartd.log
        assert cartd.get("/mine").status == 503
        away.rename(file)
        assert cartd.download("mine") == {"dir/file-0": content("mine-0", 1000)}
        stage(cartd, archive, "refused", 10)
