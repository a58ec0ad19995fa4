"""A stop during any operation: it ends cleanly and soon, and the next start continues."""

from __future__ import annotations

import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.support import preloaded
from tests.support.archive_faults import hang_after, hang_before_head, status
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd, wait_for
from tests.support.with_values import with_values

pytest_plugins = ("tests.support.archive_fixtures",)

MB = 10**6
NEVER = 10**9
"""HEADs until a file is staged from tape: the test does not wait for it."""
MANY = 2000


def rows(cartd: RunningCartd, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(cartd.directory / "cartd.sqlite3")) as connection, connection:
        return connection.execute(query).fetchall()


def appears(cartd: RunningCartd, pattern: str) -> None:
    wait_for(lambda: next(cartd.volume.glob(pattern), None))


def begun(cartd: RunningCartd, request: bytes) -> socket.socket:
    """A connection with a request, or a part of one, whose response is not read."""
    connection = socket.create_connection(("127.0.0.1", cartd.port))
    connection.sendall(request)
    return connection


def post_many(archive: FaultyArchive, uid: str) -> bytes:
    """A manifest whose files are the same for every uid."""
    archive.put("many", b"many")
    return manifest(
        [entry("many", f"dir-{n % 100}/file-{n}", b"many") for n in range(MANY)], mark=uid
    )


# Each starts an operation, and returns the uids that must be ready in the end, however it was
# interrupted.
State = Callable[[RunningCartd, FaultyArchive], list[str]]


def waits_for_the_archive(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    uids = ["asks", "tape", "again", "fetches"]
    bodies = {uid: manifest_of(archive, uid, 4 * MB) for uid in uids}
    archive.fault("asks-0", hang_before_head(), method="HEAD", times=None)
    archive.put("tape-0", content("tape-0", 4 * MB), tape_heads=NEVER)
    archive.fault("again-0", status(503), method="GET", times=None)
    archive.fault("fetches-0", hang_after(3 * MB), method="GET", times=None)
    for uid, body in bodies.items():
        cartd.post(uid, body)
    for method, name in [("HEAD", "asks-0"), ("POST", "tape-0"), ("GET", "again-0")]:
        wait_for(lambda: archive.seen(method, name))  # noqa: B023
    appears(cartd, "incoming/*/*")
    return uids


def receives_a_manifest(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    begun(cartd, b"POST /cut HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n[")
    return []


def enters_a_manifest(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    body = post_many(archive, "entered")
    head = f"POST /entered HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    begun(cartd, head.encode() + body)
    return []


def bundles(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    cartd.post("bundle", manifest_of(archive, "bundle", 16 * MB, bundle=True))
    appears(cartd, "incoming/*/tar-*")
    return ["bundle"]


def links_duplicates(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    cartd.post("many", post_many(archive, "many"))
    cartd.wait_until("many", "ready")
    before = set(cartd.volume.glob("*/duplicate"))
    cartd.post("duplicate", post_many(archive, "duplicate"))
    wait_for(lambda: set(cartd.volume.glob("*/duplicate")) - before)
    return ["many", "duplicate"]


def measures_what_is_damaged(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    first = next(iter(cartd.volume.glob("*/many/dir-0/file-0")))
    first.unlink()
    begun(cartd, b"GET /many HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return ["many"]


def removes_a_tree(cartd: RunningCartd, archive: FaultyArchive) -> list[str]:
    begun(cartd, b"DELETE /duplicate HTTP/1.1\r\nHost: localhost\r\n\r\n")
    appears(cartd, "incoming/*/removed-*")
    return []


STATES: list[State] = [
    waits_for_the_archive,
    receives_a_manifest,
    enters_a_manifest,
    bundles,
    links_duplicates,
    measures_what_is_damaged,
    removes_a_tree,
]


@in_a_thread
def test_in_the_middle_of_any_work(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        for state in STATES:
            uids = state(cartd, archive)
            assert cartd.terminate() == 0, state
            assert_no_unexpected_errors(cartd.log)
            assert rows(cartd, "SELECT id FROM cart WHERE lease_holder IS NOT NULL") == []
            assert not list(cartd.volume.glob("holders/*"))
            archive.heal()
            for file in archive.files.values():
                file.tape_heads = 0
            cartd.start()
            for uid in uids:
                cartd.wait_until(uid, "ready")
        assert cartd.request("HEAD", "/cut").status == 404
        # Whether the damage was found before the stop or is found now, the cart is restaged.
        wait_for(lambda: cartd.get("/many").status == 200)
        assert len(cartd.download("many")) == MANY
        # A removal is completed; a post that was interrupted is stored or not.
        wait_for(lambda: not any(cartd.volume.glob("incoming/*")))
        assert {path.name for path in cartd.volume.glob("[0-9]*/*")} - {"entered"} == {
            *("asks", "tape", "again", "fetches", "bundle.tar", "many")
        }


@in_a_thread
def test_at_its_start(archive: FaultyArchive, tmp_path: Path) -> None:
    """It has just begun to listen, and measures carts of Pacifica's."""
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        cartd.post("many", post_many(archive, "many"))
        cartd.wait_until("many", "ready")
        assert cartd.terminate() == 0
        rows(cartd, "UPDATE cart SET bytes_total = NULL, volume_bytes = 0")
        for number in (signal.SIGTERM, signal.SIGHUP):
            with (cartd.directory / "cartd.log").open("ab") as log:
                cartd.process = preloaded.start(
                    cartd.twistd, cwd=cartd.directory, env=cartd.settings(), output=log
                )
            wait_for(cartd.listens)
            cartd.send(number)
            assert cartd.ended() == 0
            assert_no_unexpected_errors(cartd.log)
            assert not list(cartd.volume.glob("holders/*"))
        cartd.start()
        assert len(cartd.download("many")) == MANY
        [(measured,)] = rows(cartd, "SELECT volume_bytes FROM cart")
        assert measured == 4 * MANY


@in_a_thread
def test_a_stop_during_an_eviction(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        cartd.post("many", post_many(archive, "many"))
        cartd.wait_until("many", "ready")
        assert cartd.terminate() == 0
        cartd.configure(f"[cartd]\nvolume_quota = {MB}\n")
        cartd.start()
        cartd.post("new", manifest_of(archive, "new", MB))
        appears(cartd, "incoming/*/removed-*")
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
        cartd.start()
        cartd.wait_until("new", "ready")
        wait_for(lambda: on_the_volume(cartd) == {"2/new/dir/file-0"})


@in_a_thread
def test_while_another_program_has_locked_the_database(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    """Its leases cannot be released; the next start detects that it has ended."""
    timeouts = (
        "staging.stager.STOP_STEP_TIMEOUT",
        "components.STOP_STEP_TIMEOUT",
        "integrity.recovery.FINAL_SYNC_TIMEOUT",
    )
    soon = {f"cartd.{timeout}": 0.5 for timeout in timeouts}
    with running_cartd(tmp_path, archive=url_of(archive), started=False) as cartd:
        cartd.program = with_values(cartd.twistd, soon)
        cartd.start()
        stage(cartd, archive, "ready", 1000)
        body = manifest_of(archive, "mine", MB)
        archive.put("mine-0", content("mine-0", MB), tape_heads=NEVER)
        cartd.post("mine", body)
        wait_for(lambda: archive.seen("POST", "mine-0"))
        with closing(sqlite3.connect(cartd.directory / "cartd.sqlite3")) as other:
            other.execute("BEGIN EXCLUSIVE")
            begun(cartd, b"DELETE /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert cartd.download("ready") == {"dir/file-0": content("ready-0", 1000)}
            assert cartd.terminate() == 0
            assert_no_unexpected_errors(cartd.log)
            other.rollback()
        assert len(rows(cartd, "SELECT id FROM cart WHERE lease_holder IS NOT NULL")) == 1
        archive.files["mine-0"].tape_heads = 0
        cartd.start()
        cartd.wait_until("mine", "ready")
        # A request without a response had either no effect or its whole effect.
        assert cartd.request("HEAD", "/ready").status in (204, 404)


def test_nohup_keeps_it_running_without_its_terminal(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive="http://127.0.0.1:9/", started=False, fresh=True) as cartd:
        cartd.program = ("nohup", *cartd.twistd)
        cartd.start()
        cartd.send(signal.SIGHUP)
        assert cartd.get("/").status == 200
        assert "Stopping" not in cartd.log
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
