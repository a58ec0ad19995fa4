"""The same manifest yields the same tar, whenever and wherever it is staged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.archived_carts import content, in_a_thread, url_of
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import Answer, RunningCartd, entry, manifest, running_cartd

pytest_plugins = ("tests.support.archive_fixtures",)

FILES = {
    "a/one": b"first",
    "empty": b"",
    "\u00e4/" + "x" * 120: content("large", 300_000),
    "x/" * 140 + "deep": b"deep",
}


def posted(archive: FaultyArchive, **more: object) -> bytes:
    for number, data in enumerate(FILES.values()):
        archive.put(str(number), data)
    entries = [entry(number, path, data) for number, (path, data) in enumerate(FILES.items())]
    return manifest(entries, **more)


def staged(cartd: RunningCartd, body: bytes) -> Answer:
    assert cartd.post("mine", body).status == 201
    cartd.wait_until("mine", "ready")
    answer = cartd.get("/mine?filename=mine.tar")
    assert answer.status == 200
    return answer


@pytest.mark.parametrize("bundle", [False, True], ids=["streamed", "on the volume"])
@in_a_thread
def test_another_service_sends_the_same_bytes_and_etag(
    archive: FaultyArchive, tmp_path: Path, bundle: bool
) -> None:
    body = posted(archive, bundle=bundle)
    with running_cartd(tmp_path / "one", archive=url_of(archive), TZ="UTC") as cartd:
        first = staged(cartd, body)
        cartd.delete("mine")
        again = staged(cartd, body)
    with running_cartd(
        tmp_path / "two", archive=url_of(archive), TZ="Asia/Kolkata", LC_ALL="C"
    ) as cartd:
        other = staged(cartd, body)
        resumed = cartd.get(
            "/mine?filename=mine.tar", range="bytes=300-", if_range=first.headers["etag"]
        )
    for answer in (again, other):
        assert answer.body == first.body
        assert answer.headers["etag"] == first.headers["etag"]
    assert (resumed.status, resumed.body) == (206, first.body[300:])


@in_a_thread
def test_a_restaged_file_yields_the_same_tar_in_any_time_zone(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), TZ="UTC") as cartd:
        staged(cartd, posted(archive))
        before = cartd.get("/mine")
        (cartd.volume / "1/mine/a/one").unlink()
        assert cartd.run("cartd-cmd", "fixit", "--cartid", "mine").stderr == "mine: ready\n"
        assert (cartd.volume / "1/mine/a/one").exists()
        assert cartd.terminate() == 0
        cartd.environment = {"TZ": "America/New_York"}
        cartd.fresh = True
        cartd.start()
        after = cartd.get("/mine")
        assert after.body == before.body
        for name in ("etag", "last-modified", "content-length", "content-disposition"):
            assert after.headers[name] == before.headers[name]
