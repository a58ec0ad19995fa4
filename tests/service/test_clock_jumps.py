"""The service on a machine whose clock is changed, or that sleeps for an hour."""

from __future__ import annotations

import io
import re
import signal
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
from sqlalchemy import create_engine, text

from tests.support.archive_faults import Gate, halted
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for
from tests.support.settable_clocks import Clocks
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader

pytest_plugins = ("tests.support.archive_fixtures",)

HOUR = 3600
LARGE = 2 * 2**20
"""Size of a file of which half is on the disk before the rest is sent."""


@contextmanager
def cartd_with(
    clocks: Clocks, archive: FaultyArchive, directory: Path, beside: RunningCartd | None = None
) -> Iterator[RunningCartd]:
    """A service with these clocks, on its own or another service's store and volume."""
    with running_cartd(directory, archive=url_of(archive), started=False, fresh=True) as cartd:
        if beside is not None:
            cartd.database = beside.database
            cartd.environment = {"VOLUME_PATH": str(beside.volume)}
        cartd.program = clocks.command(cartd.twistd)
        cartd.start()
        yield cartd


def begun(cartd: RunningCartd, archive: FaultyArchive) -> Gate:
    """Post a cart of two files; wait until one is staged and the other half received."""
    gate = Gate()
    posted = manifest_of(archive, "mine", 2 * LARGE, files=2)
    archive.fault("mine-1", halted(LARGE // 2, gate), method="GET")
    assert cartd.post("mine", posted).status == 201
    wait_for(lambda: cartd.staged("mine") == 1)
    wait_for(lambda: list(cartd.volume.glob("incoming/*/*")))
    return gate


def let_come(gate: Gate) -> None:
    """Send the rest of the half-received file."""
    the_reactor().callFromThread(gate.open)


def fetched(archive: FaultyArchive) -> list[int]:
    """Return how often each file of the cart was fetched."""
    return [len(archive.seen("GET", f"mine-{n}")) for n in range(2)]


def suspend(cartd: RunningCartd) -> None:
    """Suspend it between two transactions: a lock that it held would suspend others, too."""
    assert cartd.process is not None
    process = psutil.Process(cartd.process.pid)

    def is_suspended_without_lock() -> bool:
        cartd.send(signal.SIGSTOP)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        if is_writable(cartd.directory / "cartd.sqlite3"):
            return True
        cartd.send(signal.SIGCONT)
        return False

    wait_for(is_suspended_without_lock)


def is_writable(database: Path) -> bool:
    """Whether no process holds the lock for writing to this SQLite file."""
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def assert_right(cartd: RunningCartd) -> None:
    """Check that its bytes and times are the archive's, in the tar and on the volume."""
    with tarfile.open(fileobj=io.BytesIO(cartd.get("/mine").body)) as tar:
        members = [member for member in tar if member.isfile()]
        got = [(tar.extractfile(member) or io.BytesIO()).read() for member in members]
    assert got == [content(f"mine-{n}", LARGE) for n in range(2)]
    assert [int(member.mtime) for member in members] == [1_700_000_000] * 2
    on_disk = list(cartd.volume.glob("[0-9]*/mine/dir/*"))
    assert [int(path.stat().st_mtime) for path in on_disk] == [1_700_000_000] * 2


def leases(cartd: RunningCartd) -> list[tuple[str, float]]:
    """Return the lease holders and expiry times of carts."""
    engine = create_engine(cartd.database)
    with engine.connect() as connection:
        query = "SELECT lease_holder, lease_until FROM cart WHERE lease_holder IS NOT NULL"
        found = [(str(holder), float(until)) for holder, until in connection.execute(text(query))]
    engine.dispose()
    return found


@in_a_thread
def test_a_clock_jump_disturbs_no_cart(archive: FaultyArchive, tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clocks")
    with cartd_with(clocks, archive, tmp_path / "cartd") as cartd:
        stage(cartd, archive, "large", TOO_MUCH_FOR_SOCKETS)
        with slow_reader(cartd, "large") as reader:
            gate = begun(cartd, archive)
            # The timers continue: the lease is renewed.
            clocks.set(date=-HOUR)
            wait_for(lambda: leases(cartd)[0][1] < time.time())
            stage(cartd, archive, "back", 1000)
            clocks.set(date=HOUR)
            wait_for(lambda: leases(cartd)[0][1] > time.time() + HOUR)
            stage(cartd, archive, "ahead", 1000)
            let_come(gate)
            cartd.wait_until("mine", "ready")
            tar = reader.rest()
        assert content("large-0", TOO_MUCH_FOR_SOCKETS) in tar
        assert fetched(archive) == [1, 1]
        assert_right(cartd)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
        assert not re.search("Retrying|did not|silent|Aborting", cartd.log)


@in_a_thread
def test_a_service_that_was_suspended_for_an_hour_goes_on(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    clocks = Clocks(tmp_path / "clocks")
    with cartd_with(clocks, archive, tmp_path / "cartd") as cartd:
        begun(cartd, archive)
        cartd.send(signal.SIGSTOP)
        clocks.set(passed=HOUR)
        cartd.send(signal.SIGCONT)
        # The archive seems to have sent nothing for an hour: the request is retried.
        cartd.wait_until("mine", "ready")
        assert fetched(archive) == [1, 2]
        assert_right(cartd)
        stage(cartd, archive, "after", 1000)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_resumed_process_leaves_a_taken_over_cart_alone(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    true, ahead = Clocks(tmp_path / "true"), Clocks(tmp_path / "ahead")
    with cartd_with(true, archive, tmp_path / "first") as first:
        gate = begun(first, archive)
        [(holder, _)] = leases(first)
        suspend(first)
        with cartd_with(ahead, archive, tmp_path / "second", beside=first) as second:
            assert leases(first)[0][0] == holder
            ahead.set(date=HOUR)
            second.wait_until("mine", "ready")
            assert fetched(archive) == [1, 2]
            times = {
                path: path.stat().st_ctime_ns for path in first.volume.glob("[0-9]*/mine/dir/*")
            }
            let_come(gate)
            first.send(signal.SIGCONT)
            wait_for(lambda: "Cart 1 was deleted or taken over by another process" in first.log)
            assert second.status("mine") == first.status("mine") == ("ready", "")
            assert_right(first)
            assert second.download("mine") == first.download("mine")
            assert times == {path: path.stat().st_ctime_ns for path in times}
            assert not list(first.volume.glob("incoming/*/*"))
            stage(first, archive, "another", 1000)
            assert second.download("another") == {"dir/file-0": content("another-0", 1000)}
            assert first.terminate() == second.terminate() == 0
            assert_no_unexpected_errors(first.log)
            assert_no_unexpected_errors(second.log)
            assert not list(first.volume.glob("holders/*"))
