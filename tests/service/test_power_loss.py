"""Power failures: files that may not have reached the disk are verified before they are sent.

A power failure is simulated: a service is killed, its unsynced files are truncated or emptied, and
the next service runs as after a reboot, with patches that make the disk slow, broken or watched;
see ``CHANGED``.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from sqlalchemy import text

from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.faulty_archive import FaultyArchive
from tests.support.pacifica_schema import begin
from tests.support.running_cartd import (
    DEADLINE,
    Answer,
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)

pytest_plugins = ("tests.support.archive_fixtures",)

CHANGED = """
from threading import Event
from cartd.integrity import recovery
from cartd.volume import file_system, verify
from cartd.volume.file_system import FileSystem, SyncFailed
from twisted.scripts.twistd import run

look = verify._verify_file

def recorded(below, path, *args, **more):
    if below.exists(path):
        with open("hashed", "a") as hashed:
            hashed.write(f"{path}\\n")
    return look(below, path, *args, **more)

def broken(self):
    raise SyncFailed("broken")

verify._verify_file = recorded
"""
SELDOM = "recovery.SYNC_INTERVAL = 1e9\n"
OFTEN = "recovery.SYNC_INTERVAL = 0.05\n"
BROKEN = "FileSystem.sync = broken\n"
HANGS = "FileSystem.sync = lambda self: Event().wait()\nrecovery.FINAL_SYNC_TIMEOUT = 0.2\n"
SAME_BOOT = "file_system.page_cache_id = lambda _: 'this boot'\n"
NEVER = 10**9
MANY = 150


@contextmanager
def changed_cartd(
    directory: Path, archive: FaultyArchive, changes: str, boot: str | None = None
) -> Iterator[RunningCartd]:
    with running_cartd(directory, archive=url_of(archive), started=False) as cartd:
        start(cartd, changes, boot)
        yield cartd
        assert_no_unexpected_errors(cartd.log)


def another_boot() -> str:
    """Simulate a reboot of the machine."""
    return f"file_system.page_cache_id = lambda _: {str(uuid.uuid4())!r}\n"


def start(cartd: RunningCartd, changes: str, boot: str | None = None) -> None:
    """Start it with ``changes``, and forget which files were hashed."""
    (cartd.directory / "hashed").unlink(missing_ok=True)
    program = f"{CHANGED}{changes}{another_boot() if boot is None else boot}run()"
    cartd.program = (sys.executable, "-c", program, *cartd.twistd[1:])
    cartd.start()


def hashed(cartd: RunningCartd) -> set[Path]:
    """Return the files on the volume that were read to verify their hashes."""
    listed = cartd.directory / "hashed"
    return set(map(Path, listed.read_text().splitlines())) if listed.exists() else set()


def dirty_files(cartd: RunningCartd) -> dict[str, set[int]]:
    """Return the positions of dirty files, by the uids of their carts."""
    found: dict[str, set[int]] = {}
    with begin(cartd.database) as connection:
        rows = connection.execute(
            text("SELECT cart_uid, positions FROM dirty_files JOIN cart ON cart.id = cart_id")
        )
        for uid, positions in rows:
            found.setdefault(uid, set()).update(json.loads(positions))
    return found


def recorded_page_caches(cartd: RunningCartd) -> list[str]:
    """Return the processes whose page cache is recorded."""
    with begin(cartd.database) as connection:
        return list(connection.execute(text("SELECT holder FROM page_cache")).scalars())


def cut(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Damage the file as a file system leaves blocks that were allocated but not written."""
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = (cut, empty, Path.unlink)


def damage(paths: Iterable[Path]) -> None:
    for number, path in enumerate(paths):
        DAMAGES[number % len(DAMAGES)](path)


def request_until_ready(cartd: RunningCartd, uid: str, answers: list[Answer]) -> Thread:
    """Request the cart repeatedly, from before the service listens until it is sent."""
    end = time.monotonic() + DEADLINE

    def ask() -> None:
        while (not answers or answers[-1].status != 200) and time.monotonic() < end:
            try:
                answers.append(cartd.get(f"/{uid}?filename=data"))
            except OSError:
                assert cartd.process is not None

    asking = Thread(target=ask)
    asking.start()
    return asking


def tree(cartd: RunningCartd, uid: str) -> Path:
    [found] = cartd.volume.glob(f"[0-9]*/{uid}")
    return found


@in_a_thread
def test_after_a_power_failure_only_damaged_files_are_fetched(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    names = [f"n{number}" for number in range(MANY)]
    data = {name: content(name, 1000 + number) for number, name in enumerate(names)}
    for name in names:
        archive.put(name, data[name])
    archive.put("tape", b"on tape", tape_heads=NEVER)
    unknown = [{**entry(name, f"u/{name}", b""), "hashsum": ""} for name in names[:6]]
    with changed_cartd(tmp_path / "cartd", archive, OFTEN) as cartd:
        stage(cartd, archive, "safe", 30_000, files=3)
        wait_for(lambda: not dirty_files(cartd))
        assert cartd.terminate() == 0
        start(cartd, SELDOM)
        stage(cartd, archive, "large", 5 << 20, files=3)
        stage(cartd, archive, "tar", 40_000, files=4, bundle=True)
        stage(cartd, archive, "gone", 40_000, files=4)
        entries = [entry(name, f"{name[-1]}/{name}", data[name]) for name in names]
        cartd.post("many", manifest(entries))
        cartd.wait_until("many", "ready")
        cartd.post("again", manifest(entries[: MANY // 2]))
        cartd.wait_until("again", "ready")
        cartd.post("unknown", manifest(unknown))
        cartd.wait_until("unknown", "ready")
        cartd.post("half", manifest([*entries[-9:], entry("tape", "tape", b"on tape")]))
        wait_for(lambda: cartd.staged("half") == 9)
        cartd.delete("gone")
        assert not hashed(cartd)
        whole = ("safe", "large", "tar", "many", "again", "unknown")
        before = {uid: cartd.get(f"/{uid}?filename=data") for uid in whole}
        cartd.kill()

        left = dirty_files(cartd)
        assert {uid: len(positions) for uid, positions in left.items()} == {
            "large": 3,
            "many": MANY,
            "again": MANY // 2,
            "unknown": 6,
            "half": 9,
        }
        damaged = [*names[:4], *names[MANY // 2 :: 20], names[-2]]
        for number in range(2):
            damage([tree(cartd, "large") / f"dir/file-{number}"])
        damage(tree(cartd, "many") / f"{name[-1]}/{name}" for name in damaged)
        empty(tree(cartd, "unknown") / f"u/{names[5]}")
        # An intact copy under another name saves fetching a file, if it is found in time.
        nowhere = {
            name
            for name in damaged
            if data[name] not in [path.read_bytes() for path in cartd.volume.rglob(name)]
        }
        assert nowhere
        archive.requests.clear()
        archive.files["tape"].tape_heads = 0
        first: dict[str, list[Answer]] = {uid: [] for uid in whole}
        asking = [request_until_ready(cartd, uid, answers) for uid, answers in first.items()]
        start(cartd, OFTEN)
        for thread in asking:
            thread.join()

        for uid, answers in first.items():
            assert {answer.status for answer in answers[:-1]} <= {202}
            assert answers[-1].status == 200
            assert answers[-1].body == before[uid].body, uid
            assert answers[-1].headers["etag"] == before[uid].headers["etag"]
        cartd.wait_until("half", "ready")
        assert cartd.download("half")["tape"] == b"on tape"
        least = {*nowhere, "large-0", "large-1", "tape"}
        for method in ("GET", "HEAD"):
            asked = {seen.target[1:] for seen in archive.seen(method)}
            assert least <= asked <= {*least, *damaged, names[5]}
        trees = {path.relative_to(cartd.volume).parts[1] for path in hashed(cartd)}
        assert trees == {"large", "many", "again", "unknown", "half"}
        wait_for(lambda: not dirty_files(cartd))


@in_a_thread
def test_nothing_is_verified_after_an_ordinary_stop(archive: FaultyArchive, tmp_path: Path) -> None:
    with changed_cartd(tmp_path / "cartd", archive, SELDOM) as cartd:
        stage(cartd, archive, "mine", 50_000, files=5)
        archive.put("tape", b"on tape", tape_heads=NEVER)
        body = manifest([entry("mine-0", "a", content("mine-0", 10_000)), entry("tape", "b", b"")])
        cartd.post("half", body)
        wait_for(lambda: cartd.staged("half") == 1)
        assert dirty_files(cartd) == {"mine": {*range(5)}, "half": {0}}
        assert cartd.terminate() == 0
        assert dirty_files(cartd) == {}
        start(cartd, SELDOM)
        assert cartd.status("mine") == ("ready", "")
        assert len(cartd.download("mine")) == 5
        archive.files["tape"].tape_heads = 0
        assert not hashed(cartd)


@in_a_thread
def test_nothing_is_verified_after_a_crash_of_the_process_alone(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with changed_cartd(tmp_path / "cartd", archive, SELDOM, SAME_BOOT) as cartd:
        stage(cartd, archive, "mine", 50_000, files=5)
        archive.put("tape", b"on tape", tape_heads=NEVER)
        body = manifest([entry("mine-0", "a", content("mine-0", 10_000)), entry("tape", "b", b"")])
        cartd.post("half", body)
        wait_for(lambda: cartd.staged("half") == 1)
        cartd.kill()
        assert dirty_files(cartd) == {"mine": {*range(5)}, "half": {0}}
        start(cartd, OFTEN, SAME_BOOT)
        assert cartd.status("mine") == ("ready", "")
        assert len(cartd.download("mine")) == 5
        wait_for(lambda: not dirty_files(cartd))
        archive.files["tape"].tape_heads = 0
        assert not hashed(cartd)


@in_a_thread
def test_a_kill_during_a_sync_is_verified_at_the_next_start(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with changed_cartd(tmp_path / "cartd", archive, OFTEN + HANGS, SAME_BOOT) as cartd:
        stage(cartd, archive, "mine", 50_000, files=5)
        wait_for(lambda: not recorded_page_caches(cartd))
        cartd.kill()
        empty(tree(cartd, "mine") / "dir/file-2")
        start(cartd, OFTEN, SAME_BOOT)
        cartd.wait_until("mine", "ready")
        assert len(cartd.download("mine")) == 5
        assert [len(archive.seen("GET", f"mine-{n}")) for n in range(5)] == [1, 1, 2, 1, 1]


@in_a_thread
def test_a_hanging_disk_blocks_no_stop_and_is_verified(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with changed_cartd(tmp_path / "cartd", archive, OFTEN + HANGS) as cartd:
        stage(cartd, archive, "mine", 50_000, files=5)
        body = cartd.get("/mine").body
        assert cartd.terminate() == 0
        assert "are verified at the next start" in cartd.log
        assert dirty_files(cartd) == {"mine": {*range(5)}}
        empty(tree(cartd, "mine") / "dir/file-2")
        start(cartd, OFTEN)
        cartd.wait_until("mine", "ready")
        assert cartd.get("/mine").body == body
        assert [len(archive.seen("GET", f"mine-{n}")) for n in range(5)] == [1, 1, 2, 1, 1]


@in_a_thread
def test_unwritten_files_are_verified_while_the_service_runs(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with changed_cartd(tmp_path / "cartd", archive, OFTEN + BROKEN) as cartd:
        body = manifest_of(archive, "mine", 50_000, files=5)
        archive.put("tape", b"on tape", tape_heads=NEVER)
        tape = [entry("tape", "tape", b"on tape")]
        cartd.post("mine", json.dumps({"fileids": json.loads(body)["fileids"] + tape}).encode())
        wait_for(lambda: len(hashed(cartd)) == 5)
        assert cartd.log.count("Check the disk") == 1
        archive.files["tape"].tape_heads = 0
        # The disk stays broken: the last files are revalidated again, with growing pauses.
        answers: list[Answer] = []

        def is_intact() -> bool:
            answers.append(cartd.get("/mine"))
            return answers[-1].status == 200

        wait_for(is_intact)
        files = {f"dir/file-{n}": content(f"mine-{n}", 10_000) for n in range(5)}
        assert {answer.status for answer in answers[:-1]} <= {202}
        assert unpacked(answers[-1].body) == files | {"tape": b"on tape"}
        assert [len(archive.seen("GET", f"mine-{n}")) for n in range(5)] == [1] * 5


@in_a_thread
def test_a_command_verifies_and_syncs_what_it_stages(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with changed_cartd(tmp_path / "cartd", archive, SELDOM) as cartd:
        stage(cartd, archive, "mine", 40_000, files=4)
        archive.put("tape", b"on tape", tape_heads=NEVER)
        entries = [entry(f"mine-{n}", f"{n}", content(f"mine-{n}", 10_000)) for n in range(4)]
        cartd.post("half", manifest([*entries[:3], entry("tape", "tape", b"on tape")]))
        wait_for(lambda: cartd.staged("half") == 3)
        cartd.kill()
        empty(tree(cartd, "half") / "1")
        cut(tree(cartd, "mine") / "dir/file-2")
        archive.files["tape"].tape_heads = 0
        # One cart was being staged, with links to the ready one: both lose two files.
        assert recorded_page_caches(cartd)
        cartd.run("cartd-cmd", "fixit", "--cartid", "half")
        cartd.run("cartd-cmd", "verify", "--cartid", "mine", "--repair")
        assert [len(archive.seen("GET", f"mine-{n}")) for n in range(4)] == [1, 2, 2, 1]
        assert dirty_files(cartd) == {}
        start(cartd, OFTEN)
        assert [cartd.status(uid)[0] for uid in ("half", "mine")] == ["ready", "ready"]
        files = {f"{n}": content(f"mine-{n}", 10_000) for n in range(3)}
        assert cartd.download("half") == files | {"tape": b"on tape"}
        assert len(cartd.download("mine")) == 4
        assert not hashed(cartd)
