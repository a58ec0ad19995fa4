"""Eviction in the running service: the volume stays within its limits."""

from __future__ import annotations

from http.client import IncompleteRead
from pathlib import Path
from shutil import disk_usage

import pytest
from sqlalchemy import text

from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.faulty_archive import FaultyArchive
from tests.support.pacifica_schema import begin
from tests.support.running_cartd import RunningCartd, running_cartd, unpacked, wait_for
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader
from tests.support.volume_watch import Watch

pytest_plugins = ("tests.support.archive_fixtures",)

MB = 10**6
LARGE = TOO_MUCH_FOR_SOCKETS
NO_SPACE = "No Space Available"
NEVER = 10**9
"""HEADs until a file is staged from tape: the test does not wait for it."""


def answers(cartd: RunningCartd, uids: str) -> dict[str, int]:
    """Return the status of a HEAD for each one-letter uid: 204 or 404."""
    return {uid: cartd.request("HEAD", f"/{uid}").status for uid in uids}


def refused(cartd: RunningCartd, archive: FaultyArchive, uid: str, size: int) -> None:
    """Post a cart that does not fit: none of its files may be fetched."""
    cartd.post(uid, manifest_of(archive, uid, size))
    assert cartd.wait_until(uid, "error") == NO_SPACE
    assert archive.seen("GET", f"{uid}-0") == []


@in_a_thread
def test_the_least_recently_used_cart_is_evicted_first(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), ini=quota(4 * MB)) as cartd:
        for uid in "abcd":
            stage(cartd, archive, uid, MB)
        assert cartd.download("a") == {"dir/file-0": content("a-0", MB)}
        assert cartd.post("b", manifest_of(archive, "b", MB)).status == 201
        stage(cartd, archive, "e", MB)
        assert answers(cartd, "abcde") == {"a": 204, "b": 204, "c": 404, "d": 204, "e": 204}
        stage(cartd, archive, "f", 2 * MB)
        assert answers(cartd, "abdef") == {"a": 404, "b": 204, "d": 404, "e": 204, "f": 204}
        assert {path.name for path in cartd.volume.glob("[0-9]*/*")} == {"b", "e", "f"}
        assert {path.name for path in (cartd.volume / "cartuids").iterdir()} == {"b", "e", "f"}
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_cart_that_is_being_downloaded_stays_and_another_goes(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), ini=quota(LARGE + 2 * MB)) as cartd:
        stage(cartd, archive, "a", LARGE)
        stage(cartd, archive, "b", MB)
        with slow_reader(cartd, "a") as reader:
            stage(cartd, archive, "c", 2 * MB)
            assert answers(cartd, "abc") == {"a": 204, "b": 404, "c": 204}
            refused(cartd, archive, "d", 3 * MB)
            assert answers(cartd, "ac") == {"a": 204, "c": 204}
            assert unpacked(reader.rest()) == {"dir/file-0": content("a-0", LARGE)}
        # The download has made it the more recently used of the two.
        stage(cartd, archive, "e", 2 * MB)
        assert answers(cartd, "ace") == {"a": 204, "c": 404, "e": 204}
        stage(cartd, archive, "f", 3 * MB)
        assert answers(cartd, "aef") == {"a": 404, "e": 204, "f": 204}


@in_a_thread
def test_a_deleted_cart_counts_until_its_files_are_gone(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    ini = quota(LARGE + MB, "lru_interval = 0.2")
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        stage(cartd, archive, "a", LARGE)
        with slow_reader(cartd, "a") as reader:
            assert cartd.delete("a").status == 200
            assert cartd.get("/a").status == 404
            refused(cartd, archive, "b", 2 * MB)
            assert unpacked(reader.rest()) == {"dir/file-0": content("a-0", LARGE)}
        wait_for(lambda: not list(cartd.volume.glob("[0-9]*")))
        stage(cartd, archive, "b", 2 * MB)
        # A large file written after the deletion is removed by itself.
        (cartd.volume / "1/a").mkdir(parents=True)
        (cartd.volume / "1/a/late").write_bytes(b"late")
        wait_for(lambda: not (cartd.volume / "1").exists())
        assert_no_unexpected_errors(cartd.log)


@pytest.mark.parametrize(
    ("size", "more"),
    [(2 * MB, "lru_buffer_time = 3600"), (2 * MB, "lru_purge = off"), (2 * MB + 1, "")],
    ids=["used lately", "nothing is evicted", "too large"],
)
@in_a_thread
def test_a_cart_without_space_fails_before_any_fetch(
    archive: FaultyArchive, tmp_path: Path, size: int, more: str
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), ini=quota(2 * MB, more)) as cartd:
        stage(cartd, archive, "a", MB)
        stage(cartd, archive, "b", MB)
        refused(cartd, archive, "c", size)
        assert answers(cartd, "ab") == {"a": 204, "b": 204}
        assert cartd.get("/c").json["message"] == NO_SPACE
        head = cartd.request("HEAD", "/c")
        assert (head.status, head.headers["x-pacifica-message"]) == (500, NO_SPACE)
        # It uses no space, and can be deleted.
        assert cartd.delete("c").status == 200
        assert cartd.download("a") == {"dir/file-0": content("a-0", MB)}


@in_a_thread
def test_the_reserve_of_the_volume_stays_free(archive: FaultyArchive, tmp_path: Path) -> None:
    ini = f"[cartd]\nvolume_reserve = {disk_usage(tmp_path).total - 1}\n"
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        refused(cartd, archive, "a", 1)


@in_a_thread
def test_carts_are_evicted_when_their_buffer_time_is_over(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        for uid in "abc":
            stage(cartd, archive, uid, MB)
        assert cartd.terminate() == 0
        cartd.configure(quota(MB, "lru_buffer_time = 3600\nlru_interval = 0.1"))
        cartd.start()
        with slow_reader(cartd, "c"):
            # Two hours later, by the carts' access times.
            with begin(cartd.database) as connection:
                connection.execute(
                    text("UPDATE cart SET used_date = datetime(used_date, '-2 hours')")
                )
            wait_for(lambda: answers(cartd, "ab") == {"a": 404, "b": 404})
            assert answers(cartd, "c") == {"c": 204}
        assert cartd.download("c") == {"dir/file-0": content("c-0", MB)}
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_staging_cart_keeps_its_reservation(archive: FaultyArchive, tmp_path: Path) -> None:
    ini = quota(5 * MB, "lru_interval = 0.1")
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        body = manifest_of(archive, "s", 2 * MB, files=2)
        archive.put("s-1", content("s-1", MB), tape_heads=NEVER)
        cartd.post("s", body)
        wait_for(lambda: cartd.request("HEAD", "/s").headers["x-pacifica-files-staged"] == "1")
        refused(cartd, archive, "t", 4 * MB)
        for uid in "abcdef":
            stage(cartd, archive, uid, MB)
        assert answers(cartd, "sabcdef") == {
            **dict.fromkeys("sdef", 204),
            **dict.fromkeys("abc", 404),
        }
        archive.files["s-1"].tape_heads = 0
        cartd.wait_until("s", "ready")
        assert len(archive.seen("GET", "s-0")) == 1
        assert cartd.download("s")["dir/file-1"] == content("s-1", MB)


@in_a_thread
def test_many_carts_together_never_overfill_the_volume(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    most, carts = 4 * MB, [f"cart-{number}" for number in range(24)]
    with running_cartd(tmp_path, archive=url_of(archive), ini=quota(most)) as cartd:
        with Watch(cartd.volume) as watch:
            for number, uid in enumerate(carts):
                body = manifest_of(archive, uid, MB // 2, files=5, bundle=number % 3 == 0)
                assert cartd.post(uid, body).status == 201
            wait_for(lambda: all(ended(cartd, uid) for uid in carts))
        assert MB <= watch.most <= most
        ready = [uid for uid in carts if cartd.request("HEAD", f"/{uid}").status == 204]
        assert ready
        for uid in ready:
            assert len(cartd.download(uid)) == 5
        assert_no_unexpected_errors(cartd.log)


def ended(cartd: RunningCartd, uid: str) -> bool:
    head = cartd.request("HEAD", f"/{uid}")
    status, message = head.headers["x-pacifica-status"], head.headers["x-pacifica-message"]
    assert head.status != 500 or message == NO_SPACE
    return head.status != 204 or status == "ready"


def quota(size: int, more: str = "") -> str:
    return f"[cartd]\nvolume_quota = {size}\n{more}\n"


@in_a_thread
def test_a_download_over_its_time_limit_is_aborted(archive: FaultyArchive, tmp_path: Path) -> None:
    ini = quota(LARGE, "[server]\nmax_download_time = 0.5")
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        stage(cartd, archive, "a", LARGE)
        with slow_reader(cartd, "a") as reader:
            wait_for(lambda: "is aborted after 0.5 s" in cartd.log)
            with pytest.raises((ConnectionError, IncompleteRead)):
                reader.rest()
        stage(cartd, archive, "b", LARGE)
        assert answers(cartd, "ab") == {"a": 404, "b": 204}
        assert cartd.log.count("is aborted after") == 1
        assert_no_unexpected_errors(cartd.log)
