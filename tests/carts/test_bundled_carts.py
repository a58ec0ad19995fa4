"""Carts that are stored on the volume as one tar."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import text

from tests.support.archive_faults import Gate, halted
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.pacifica_schema import begin
from tests.support.running_cartd import (
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)

pytest_plugins = ("tests.support.archive_fixtures",)

FILES = {
    "a/one": b"first",
    "empty": b"",
    "ä/ö": content("large", 300_000),
    "x/" * 140 + "deep": b"deep",
    "a/two": content("two", 10_240),
}
SLOW = 48 * 2**20
"""Bytes that take a while to be written."""
NEVER = 10**9
"""HEADs after which a file that stays on tape would be available."""
BUNDLE_TASK = "[cartd]\nbundle_task = on\n"


def post(cartd: RunningCartd, archive: FaultyArchive, uid: str, **more: object) -> None:
    """Post a cart of FILES, whose archive ids are their numbers."""
    for number, data in enumerate(FILES.values()):
        archive.put(str(number), data)
    entries = [entry(number, path, data) for number, (path, data) in enumerate(FILES.items())]
    assert cartd.post(uid, manifest(entries, **more)).status == 201
    cartd.wait_until(uid, "ready")


@in_a_thread
def test_a_bundle_equals_the_tar_of_an_unbundled_cart_below_uid(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        post(cartd, archive, "mine", bundle=True)
        post(cartd, archive, "unbundled")
        unbundled = cartd.get("/unbundled?filename=mine")
        [tar] = cartd.volume.glob("[0-9]*/mine.tar")
        assert [path.name for path in tar.parent.iterdir()] == ["mine.tar"]
        assert tar.read_bytes() == unbundled.body
        for name in ("", "?filename=other", "?filename=other.tar"):
            answer = cartd.get(f"/mine{name}")
            assert answer.body == unbundled.body
            assert answer.headers["etag"] == unbundled.headers["etag"]
            assert answer.headers["content-length"] == str(len(unbundled.body))
        assert "other.tar" in answer.headers["content-disposition"]
        with tarfile.open(fileobj=io.BytesIO(unbundled.body)) as opened:
            assert {name.partition("/")[0] for name in opened.getnames()} == {"mine"}
        assert unpacked(unbundled.body) == FILES
        for first, last in ((0, 0), (511, 1536), (5000, 250_000), (len(unbundled.body) - 7, 10**9)):
            part = cartd.get("/mine", range=f"bytes={first}-{last}")
            assert (part.status, part.body) == (206, unbundled.body[first : last + 1])
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_manifest_overrides_the_bundle_setting(archive: FaultyArchive, tmp_path: Path) -> None:
    asked = manifest_of(archive, "asked", SLOW, bundle=True)
    silent = manifest_of(archive, "silent", SLOW)
    with running_cartd(tmp_path, archive=url_of(archive), ini=BUNDLE_TASK) as cartd:
        post(cartd, archive, "tree", bundle=False)
        cartd.post("asked", asked)
        assert statuses_until_ready(cartd, "asked") == {"staging", "ready"}
        cartd.post("silent", silent)
        assert statuses_until_ready(cartd, "silent") == {"staging", "ready"}
        kept = {path.split("/", 1)[1] for path in on_the_volume(cartd)}
        assert kept == {"asked.tar", "silent.tar", *(f"tree/{path}" for path in FILES)}
        assert cartd.download("silent") == {"dir/file-0": content("silent-0", SLOW)}


def statuses_until_ready(cartd: RunningCartd, uid: str) -> set[str]:
    seen = {"staging"}
    while "ready" not in seen:
        seen.add(cartd.status(uid)[0])
        assert "error" not in seen
    return seen


@in_a_thread
def test_a_link_leads_to_what_the_newest_cart_of_a_uid_holds(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        link = cartd.volume / "cartuids/mine"
        post(cartd, archive, "mine")
        assert link.readlink() == Path("../1/mine")
        assert (link / "ä/ö").read_bytes() == FILES["ä/ö"]
        post(cartd, archive, "mine", bundle=True)
        assert link.readlink() == Path("../2/mine.tar")
        assert link.read_bytes() == cartd.get("/mine").body
        cartd.delete("mine")
        assert not link.is_symlink()
        post(cartd, archive, "mine")
        assert link.readlink() == Path("../3/mine")


@in_a_thread
def test_a_uid_too_long_for_the_tar_suffix_is_not_bundled(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    longest, longer, most = (
        letter * length for letter, length in zip("abc", (251, 252, 255), strict=True)
    )
    with running_cartd(tmp_path, archive=url_of(archive), ini=BUNDLE_TASK) as cartd:
        for uid in (longest, longer, most):
            stage(cartd, archive, uid, 5)
            assert unpacked(cartd.get(f"/{uid}").body) == {"dir/file-0": content(f"{uid}-0", 5)}
            assert (cartd.volume / "cartuids" / uid).exists()
        assert on_the_volume(cartd) == {
            f"1/{longest}.tar",
            f"2/{longer}/dir/file-0",
            f"3/{most}/dir/file-0",
        }
        asking = manifest_of(archive, "other", 5, bundle=True)
        assert cartd.post(longest, asking).status == 201
        for uid in (longer, most):
            refused = cartd.post(uid, asking)
            assert (refused.status, refused.json["message"].split(":")[0]) == (400, "bundle")


@pytest.mark.parametrize("moment", ["incoming/1/tar-*", "1/mine.tar"])
@in_a_thread
def test_a_kill_while_a_bundle_is_written_costs_no_second_fetch(
    archive: FaultyArchive, tmp_path: Path, moment: str
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        cartd.post("mine", manifest_of(archive, "mine", SLOW, files=3, bundle=True))
        while not list(cartd.volume.glob(moment)):
            assert cartd.status("mine")[0] != "ready"
        cartd.kill()
        cartd.start()
        cartd.wait_until("mine", "ready")
        assert cartd.download("mine") == {
            f"dir/file-{n}": content(f"mine-{n}", SLOW // 3) for n in range(3)
        }
        assert on_the_volume(cartd) == {"1/mine.tar"}
        assert len(archive.seen("GET")) == 3
        assert_no_unexpected_errors(cartd.log)


@pytest.mark.parametrize("format_", ["tar", "bag"])
@in_a_thread
def test_a_bundle_complete_at_a_crash_is_used_after_the_restart(
    archive: FaultyArchive, tmp_path: Path, format_: str
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        stage(cartd, archive, "mine", 1000, bundle=True, format=format_)
        before = cartd.get("/mine")
        cartd.kill()
        with begin(cartd.database) as connection:
            # The state between the rename of the tar and its record in the store.
            connection.execute(text("UPDATE cart SET status = 'bundling'"))
        [inode] = [path.stat().st_ino for path in cartd.volume.glob("1/mine.tar")]
        cartd.start()
        cartd.wait_until("mine", "ready")
        after = cartd.get("/mine")
        assert (after.body, after.headers["etag"]) == (before.body, before.headers["etag"])
        assert (cartd.volume / "1/mine.tar").stat().st_ino == inode
        assert len(archive.seen("GET")) == 1


def cut(tar: Path) -> None:
    with tar.open("r+b") as opened:
        opened.truncate(1536)


def grow(tar: Path) -> None:
    with tar.open("ab") as opened:
        opened.write(bytes(512))


@in_a_thread
def test_a_damaged_bundle_is_restaged_and_none_of_it_is_sent(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        post(cartd, archive, "mine", bundle=True)
        before, tar = cartd.get("/mine"), cartd.volume / "1/mine.tar"
        for damage in (cut, grow, Path.unlink):
            damage(tar)
            archive.put("0", FILES["a/one"], tape_heads=NEVER)
            assert answers_at_once(cartd, "/mine", 4) == [202] * 4
            # While a file is recalled, the damaged bundle takes no space any more.
            wait_for(lambda: not tar.exists())
            archive.files["0"].tape_heads = 0
            cartd.wait_until("mine", "ready")
            after = cartd.get("/mine")
            assert (after.body, after.headers["etag"]) == (before.body, before.headers["etag"])
            assert on_the_volume(cartd) == {"1/mine.tar"}
        # Only the damaged file on the volume is logged, with its traceback.
        assert cartd.log.count("Traceback") == cartd.log.count("VolumeDamaged: ")


def answers_at_once(cartd: RunningCartd, path: str, clients: int) -> list[int]:
    found: list[int] = []
    asking = [Thread(target=lambda: found.append(cartd.get(path).status)) for _ in range(clients)]
    for client in asking:
        client.start()
    for client in asking:
        client.join()
    return found


@in_a_thread
def test_a_bundle_of_a_cart_in_error_is_built_from_staged_files(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(
        tmp_path, archive=url_of(archive), ini="[archiveinterface]\nmax_attempts=1"
    ) as c:
        body = manifest_of(archive, "mine", 30, files=3, bundle=True)
        archive.files["mine-2"].data = b"xxxxxxxxxx"
        gate = Gate()
        archive.fault("mine-2", halted(5, gate), method="GET")
        c.post("mine", body)
        wait_for(lambda: c.staged("mine") == 2)
        the_reactor().callFromThread(gate.open)
        assert "dir/file-2" in c.wait_until("mine", "error")
        assert len(on_the_volume(c)) == 2
        archive.files["mine-2"].data = content("mine-2", 10)
        c.run("cartd-cmd", "fixit", "--cartid", "mine")
        assert c.download("mine") == {f"dir/file-{n}": content(f"mine-{n}", 10) for n in range(3)}
        assert on_the_volume(c) == {"1/mine.tar"}
        assert [len(archive.seen("GET", f"mine-{n}")) for n in range(3)] == [1, 1, 2]
