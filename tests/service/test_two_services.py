"""Two services on the same store and volume, even by mistake, share the work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support import preloaded
from tests.support.archive_faults import hang_after
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import (
    assert_no_unexpected_errors,
    cartd_with_archive,
    on_the_volume,
)
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import (
    DEADLINE,
    RunningCartd,
    command,
    entry,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader
from tests.support.volume_watch import Watch

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

MB = 10**6
LARGE = TOO_MUCH_FOR_SOCKETS
NEVER = 10**9
"""HEADs until a file is staged from tape: the test does not wait for it."""
NO_SPACE = "No Space Available"


@contextmanager
def two_services(
    directory: Path, archive: FaultyArchive, database: str, ini: str = ""
) -> Iterator[tuple[RunningCartd, RunningCartd]]:
    """At the end, running services must stop cleanly."""
    url = url_of(archive)
    with (
        running_cartd(directory / "first", archive=url, database=database, ini=ini) as first,
        running_cartd(
            directory / "second",
            archive=url,
            database=database,
            ini=ini,
            VOLUME_PATH=str(first.volume),
        ) as second,
    ):
        yield first, second
        for cartd in (first, second):
            assert cartd.process is not None
            if cartd.process.poll() is None:
                assert cartd.terminate() == 0
            assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_cart_posted_to_either_is_sent_by_both(
    archive: FaultyArchive, database: str, tmp_path: Path
) -> None:
    with two_services(tmp_path, archive, database) as both:
        uids = [f"u{number}" for number in range(8)]
        for number, uid in enumerate(uids):
            body = manifest_of(archive, uid, 40_000, files=40, bundle=number % 3 == 0)
            assert both[number % 2].post(uid, body).status == 201
        for number, uid in enumerate(uids):
            both[(number + 1) % 2].wait_until(uid, "ready")
            downloaded = [cartd.download(uid) for cartd in both]
            assert downloaded[0] == downloaded[1]
            assert downloaded[0] == {
                f"dir/file-{n}": content(f"{uid}-{n}", 1000) for n in range(40)
            }
        asked = [request.target for request in archive.seen("GET")]
        assert len(asked) == len(set(asked)) == 8 * 40


@in_a_thread
def test_staging_of_a_killed_service_is_taken_over(
    archive: FaultyArchive, database: str, tmp_path: Path
) -> None:
    with two_services(tmp_path, archive, database) as (first, second):
        body = manifest_of(archive, "slow", 12 * MB, files=3)
        archive.fault("slow-1", hang_after(3 * MB), method="GET")
        archive.put("slow-2", content("slow-2", 4 * MB), tape_heads=NEVER)
        first.post("slow", body)
        wait_for(lambda: second.staged("slow") == 1)
        wait_for(lambda: list(first.volume.glob("incoming/1/*")))
        first.kill()
        archive.files["slow-2"].tape_heads = 0
        second.wait_until("slow", "ready")
        assert len(second.download("slow")) == 3
        assert [len(archive.seen("GET", f"slow-{n}")) for n in range(3)] == [1, 2, 1]
        assert on_the_volume(first) == {f"1/slow/dir/file-{n}" for n in range(3)}


@pytest.mark.parametrize(("how", "bundle"), [("a client", False), ("a command", True)])
@in_a_thread
def test_a_cart_deleted_while_sent_by_the_other_stays(
    archive: FaultyArchive, tmp_path: Path, how: str, bundle: bool
) -> None:
    database = f"sqlite:///{tmp_path}/cartd.sqlite3"
    ini = "[cartd]\nlru_interval = 0.2\n"
    with two_services(tmp_path, archive, database, ini) as (first, second):
        stage(first, archive, "large", LARGE, files=4, bundle=bundle)
        stage(first, archive, "gone", 10)
        first.delete("gone")
        before = on_the_volume(first)
        with slow_reader(second, "large") as reader:
            if how == "a client":
                assert first.delete("large").status == 200
            else:
                wait_for(lambda: is_purged(first, "large"))
            assert first.get("/large").status == second.get("/large").status == 404
            second.send(signal.SIGSTOP)
            wait_for_a_sweep(first)
            second.send(signal.SIGCONT)
            assert on_the_volume(first) == before
            files = unpacked(reader.rest())
        assert files == {f"dir/file-{n}": content(f"large-{n}", LARGE // 4) for n in range(4)}
        wait_for(lambda: is_gone(first, 1))
        assert on_the_volume(first) == set()


@in_a_thread
def test_the_quota_holds_with_posts_to_both_services(
    archive: FaultyArchive, database: str, tmp_path: Path
) -> None:
    most = LARGE + 4 * MB
    ini = f"[cartd]\nvolume_quota = {most}\nlru_interval = 0.2\n"
    with two_services(tmp_path, archive, database, ini) as both:
        first, second = both
        stage(first, archive, "large", LARGE)
        with slow_reader(second, "large") as reader, Watch(first.volume) as watch:
            # It would be evicted for this one, and only the other service knows that it is in use.
            first.post("larger", manifest_of(archive, "larger", 5 * MB))
            assert first.wait_until("larger", "error") == NO_SPACE
            uids = [f"u{number}" for number in range(16)]
            for number, uid in enumerate(uids):
                both[number % 2].post(uid, manifest_of(archive, uid, MB // 2 * 3, files=3))
            wait_for(lambda: all(ended(second, uid) for uid in uids))
            # A deleted cart counts for both services until it has been sent.
            assert first.delete("large").status == 200
            for number, cartd in enumerate(both):
                uid = f"late{number}"
                cartd.post(uid, manifest_of(archive, uid, 5 * MB))
                assert cartd.wait_until(uid, "error") == NO_SPACE
            assert unpacked(reader.rest()) == {"dir/file-0": content("large-0", LARGE)}
        assert LARGE + MB <= watch.most <= most
        ready = [uid for uid in uids if second.request("HEAD", f"/{uid}").status == 204]
        assert ready
        for uid in ready:
            assert len(first.download(uid)) == 3
        wait_for(lambda: is_gone(first, 1))
        stage(second, archive, "fits", 5 * MB)


def ended(cartd: RunningCartd, uid: str) -> bool:
    head = cartd.request("HEAD", f"/{uid}")
    status, message = head.headers["x-pacifica-status"], head.headers["x-pacifica-message"]
    assert status != "error" or message == NO_SPACE or head.status == 404, message
    return status != "staging"


def is_purged(cartd: RunningCartd, uid: str) -> bool:
    """Whether a purge has deleted the cart: one that is used meanwhile is kept."""
    purged = cartd.run("cartd-cmd", "purge", "--time-ago", "0 seconds ago")
    assert purged.stdout.startswith(f"deleting {uid} ")
    return cartd.request("HEAD", f"/{uid}").status == 404


def wait_for_a_sweep(cartd: RunningCartd) -> None:
    """Wait until the service has removed the deleted cart, the second one."""
    (cartd.volume / "2/gone").mkdir(parents=True)
    wait_for(lambda: is_gone(cartd, 2))


def is_gone(cartd: RunningCartd, cart_id: int) -> bool:
    return not any((cartd.volume / part / str(cart_id)).exists() for part in ("", "incoming"))


def test_a_port_in_use_is_reported(
    tmp_path: Path,
) -> None:
    with running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:9/") as cartd:
        second = preloaded.run(
            [command("twistd"), "-n", "--pidfile=", "cartd", "--port", str(cartd.port)],
            cwd=tmp_path,
            env=cartd.settings(),
            timeout=DEADLINE,
        )
        assert second.returncode == 1
        assert second.stderr.startswith(f"cartd: cannot listen on tcp:{cartd.port}:")
        assert len(second.stderr.splitlines()) == 1
        assert cartd.get("/").status == 200
        assert len(list(cartd.volume.glob("holders/*"))) == 1


@pytest_twisted.ensureDeferred
async def test_two_services_on_one_volume_stage_nothing_twice(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("1", b"one", tape_heads=NEVER)
        archive.put("2", b"two")
        await deferToThread(cartd.post, "first", manifest([entry("1", "one", b"one")]))
        await archive.until(lambda: len(archive.seen("POST", "1")) == 1)
        running = running_cartd(
            tmp_path / "second",
            archive=cartd.archive,
            database=cartd.database,
            VOLUME_PATH=str(cartd.volume),
        )
        second = await deferToThread(running.__enter__)
        try:
            await deferToThread(second.post, "second", manifest([entry("2", "two", b"two")]))
            await deferToThread(cartd.wait_until, "second", "ready")
            archive.files["1"].tape_heads = 0
            await deferToThread(second.wait_until, "first", "ready")
            assert await deferToThread(second.download, "first") == {"one": b"one"}
            assert len(archive.seen("POST", "1")) == len(archive.seen("GET", "1")) == 1
            assert len(archive.seen("HEAD", "2")) == len(archive.seen("GET", "2")) == 1
            assert await deferToThread(cartd.terminate) == 0
            assert await deferToThread(second.terminate) == 0
            assert not list(cartd.volume.glob("holders/*"))
            assert_no_unexpected_errors(second.log)
        finally:
            await deferToThread(running.__exit__, None, None, None)
