"""``cartd-cmd fixit`` beside the service, without it, and after it was killed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from tests.support.archive_faults import Gate, halted, status
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.pacifica_schema import begin
from tests.support.running_cartd import (
    DEADLINE,
    RunningCartd,
    command,
    running_cartd,
    unpacked,
    wait_for,
)
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader

pytest_plugins = ("tests.support.archive_fixtures",)

ONE_TRY = "[archiveinterface]\nmax_attempts = 1\n"
NEVER = 10**9
"""HEADs until the file is on disk; more than any test waits for."""


def fixit(cartd: RunningCartd, *uids: str) -> tuple[int, list[str]]:
    done = cartd.run("cartd-cmd", "fixit", "--cartid", *uids, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def on_tape(archive: FaultyArchive, archive_id: str, size: int) -> None:
    archive.put(archive_id, content(archive_id, size), tape_heads=NEVER)


def come(archive: FaultyArchive, archive_id: str) -> None:
    """Let the file be on disk."""
    archive.files[archive_id].tape_heads = 0


def fetched(archive: FaultyArchive, uid: str, files: int) -> list[int]:
    return [len(archive.seen("GET", f"{uid}-{number}")) for number in range(files)]


@in_a_thread
def test_fixit_fetches_only_missing_files(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        stage(cartd, archive, "tree", 30, files=3)
        stage(cartd, archive, "bundle", 30, files=3, bundle=True)
        assert fixit(cartd, "bundle", "nobody", "tree", "bundle") == (
            1,
            [
                "bundle: ready, nothing to fix",
                "nobody: no such cart",
                "tree: ready, nothing to fix",
            ],
        )
        assert fetched(archive, "tree", 3) == fetched(archive, "bundle", 3) == [1, 1, 1]
        (cartd.volume / "1/tree/dir/file-0").unlink()
        (cartd.volume / "1/tree/dir/file-2").write_bytes(b"short")
        (cartd.volume / "2/bundle.tar").unlink()
        assert fixit(cartd, "tree", "bundle") == (0, ["tree: ready", "bundle: ready"])
        assert fetched(archive, "tree", 3) == [2, 1, 2]
        assert fetched(archive, "bundle", 3) == [2, 2, 2]
        for uid in ("tree", "bundle"):
            files = {f"dir/file-{n}": content(f"{uid}-{n}", 10) for n in range(3)}
            assert cartd.download(uid) == files
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_fixit_restages_a_cart_in_error(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), ini=ONE_TRY) as cartd:
        body = manifest_of(archive, "mine", 30, files=3)
        archive.files["mine-1"].data = b"wrong data"
        gate = Gate()
        archive.fault("mine-1", halted(5, gate), method="GET")
        cartd.post("mine", body)
        wait_for(lambda: cartd.staged("mine") == 2)
        the_reactor().callFromThread(gate.open)
        cartd.wait_until("mine", "error")
        # This one fails before its size is known.
        archive.fault("other-0", status(503), method="HEAD")
        cartd.post("other", manifest_of(archive, "other", 10))
        assert "503" in cartd.wait_until("other", "error")
        assert cartd.terminate() == 0
        code, [said, other] = fixit(cartd, "mine", "other")
        assert code == 1
        assert said.startswith("mine: error, Failed to stage dir/file-1 (archive id mine-1)")
        assert other == "other: ready"
        archive.files["mine-1"].data = content("mine-1", 10)
        assert fixit(cartd, "mine") == (0, ["mine: ready"])
        assert fetched(archive, "mine", 3) == [1, 3, 1]
        cartd.start()
        assert cartd.download("other") == {"dir/file-0": content("other-0", 10)}
        assert cartd.download("mine") == {
            f"dir/file-{n}": content(f"mine-{n}", 10) for n in range(3)
        }


class Terminal:
    """A command whose standard error is a terminal."""

    def __init__(self, cartd: RunningCartd, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [command(arguments[0]), *arguments[1:]],
            env=cartd.settings(),
            cwd=cartd.directory,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.shown = ""
        self._end = time.monotonic() + DEADLINE

    def read_until(self, words: str) -> None:
        while words not in self.shown:
            assert self._read(), self.shown

    def end(self) -> int:
        """Read until the command has ended; return its exit status."""
        while self._read():
            pass
        return self.process.wait(DEADLINE)

    def _read(self) -> bool:
        """Return False when no process has the terminal open, which is an error on Linux."""
        left = self._end - time.monotonic()
        assert select.select([self._master], [], [], max(left, 0))[0], self.shown
        try:
            piece = os.read(self._master, 1000)
        except OSError:
            return False
        self.shown += piece.decode()
        return bool(piece)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(cartd: RunningCartd, *arguments: str) -> Iterator[Terminal]:
    shown = Terminal(cartd, *arguments)
    try:
        yield shown
    finally:
        shown.close()


@in_a_thread
def test_fixit_shows_progress_of_the_service_on_a_terminal(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        body = manifest_of(archive, "mine", 3000, files=2)
        on_tape(archive, "mine-1", 1500)
        cartd.post("mine", body)
        wait_for(lambda: cartd.staged("mine") == 1)
        with terminal(cartd, "pacifica-cartd-cmd", "fixit", "--cartid", "mine") as shown:
            shown.read_until("\r\x1b[Kmine: 1 of 2 files, 1,500 of 3,000 bytes")
            come(archive, "mine-1")
            assert shown.end() == 0
        assert shown.shown.endswith("\r\x1b[Kmine: ready\r\n")
        assert "2 of 2 files, 3,000 of 3,000 bytes" in shown.shown
        assert fetched(archive, "mine", 2) == [1, 1]
        assert cartd.status("mine") == ("ready", "")
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_fixit_reports_an_outage_once_and_waits(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        archive.fault("*", status(503), times=None)
        cartd.post("mine", manifest_of(archive, "mine", 20, files=2))
        wait_for(lambda: "Waiting" in cartd.status("mine")[1])
        waiting = cartd.status("mine")[1]
        assert cartd.terminate() == 0
        with terminal(cartd, "cartd-cmd", "fixit", "--cartid", "mine") as shown:
            shown.read_until(f"\r\x1b[Kmine: {waiting}\r\n")
            archive.heal()
            assert shown.end() == 0
        assert shown.shown.count("Waiting") == 1
        assert shown.shown.endswith("\r\x1b[Kmine: ready\r\n")
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_fixit_takes_over_a_cart_of_a_killed_service(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        body = manifest_of(archive, "mine", 20, files=2)
        on_tape(archive, "mine-1", 10)
        cartd.post("mine", body)
        wait_for(lambda: cartd.staged("mine") == 1)
        cartd.kill()
        with begin(cartd.database) as connection:
            # As if the lease had been renewed just now, for a day: it must not be waited for.
            connection.execute(text("UPDATE cart SET lease_until = lease_until + 86400"))
        come(archive, "mine-1")
        code, [*waiting, ready] = fixit(cartd, "mine")
        assert (code, ready) == (0, "mine: ready")
        assert all(line.startswith("mine: Waiting for tape since ") for line in waiting)
        assert fetched(archive, "mine", 2) == [1, 1]
        cartd.start()
        assert cartd.download("mine") == {
            f"dir/file-{n}": content(f"mine-{n}", 10) for n in range(2)
        }


@in_a_thread
def test_fixit_does_not_evict_a_cart_being_downloaded(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    large = TOO_MUCH_FOR_SOCKETS
    ini = f"[cartd]\nvolume_quota = {large + 10}\n"
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        stage(cartd, archive, "large", large)
        cartd.post("small", manifest_of(archive, "small", large + 11))
        assert cartd.wait_until("small", "error") == "No Space Available"
        archive.put("small-0", content("x", 11))
        with begin(cartd.database) as connection:
            connection.execute(text("UPDATE cart SET used_date = '2020-01-01'"))
            connection.execute(text("UPDATE file SET hash_value = '' WHERE cart_id = 2"))
        with slow_reader(cartd, "large") as reader:
            assert fixit(cartd, "small") == (1, ["small: error, No Space Available"])
            assert unpacked(reader.rest()) == {"dir/file-0": content("large-0", large)}
        with begin(cartd.database) as connection:
            connection.execute(text("UPDATE cart SET used_date = '2020-01-01'"))
        assert fixit(cartd, "small") == (0, ["small: ready"])
        assert cartd.download("small") == {"dir/file-0": content("x", 11)}
        assert cartd.get("/large").status == 404
