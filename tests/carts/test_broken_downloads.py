"""Files damaged on the volume: never a wrong byte, and the cart is restaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer, wait_for
from tests.support.wire import assert_is_error, wire

FILES = {"a/one": b"first", "a/two": b"second" * 1000}
LARGE = Random(2).randbytes(24 * 2**20)
MIB = 2**20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        yield running


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def point_elsewhere(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def remove_the_tree(path: Path) -> None:
    shutil.rmtree(path.parents[1])


DAMAGES = [cut, lengthen, Path.unlink, point_elsewhere, remove_the_tree]


def changed(site: CartSite, uid: str) -> str:
    """Return when the status of the only cart of that uid last changed."""
    [when] = [row["updated_date"] for row in site.rows("cart") if row["cart_uid"] == uid]
    return str(when)


def assert_heals(site: CartSite, uid: str, whole: bytes, since: str = "") -> None:
    """Check that the cart becomes ready after ``since``, with the same bytes."""
    wait_for(lambda: changed(site, uid) > since)
    site.cartd.wait_until(uid, "ready")
    assert site.cartd.get(f"/{uid}?filename=data.tar").body == whole
    assert len(site.on_volume(uid)) == 1


def assert_breaks_and_heals(site: CartSite, uid: str, damage: Callable[[], object]) -> None:
    """Start a download and damage its files: it must be truncated, with correct bytes.

    The connection may be aborted before the cart is staging again.
    """
    whole = site.cartd.get(f"/{uid}?filename=data.tar").body
    before = changed(site, uid)
    with wire(site.port, receive_buffer=64 * 1024) as connection:
        connection.get(f"/{uid}?filename=data.tar")
        head = connection.head()
        assert (head.status, head.headers["content-length"]) == (200, str(len(whole)))
        first = connection.read(MIB)
        damage()
        came = first + connection.rest()
    assert len(came) < len(whole) and whole.startswith(came)
    assert_heals(site, uid, whole, since=before)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_found_before_a_download_is_restaged(
    site: CartSite, damage: Callable[[Path], object]
) -> None:
    uid = f"before-{damage.__name__}"
    site.stage(uid, FILES)
    whole = site.cartd.get(f"/{uid}?filename=data.tar").body
    [tree] = site.on_volume(uid)
    damage(tree / "a/two")
    answer = site.cartd.get(f"/{uid}?filename=data.tar", Range="bytes=2000-")
    assert_is_error(answer, 503, "The cart is not ready for download.")
    assert "retry-after" in answer.headers and answer.headers["x-pacifica-status"] == "staging"
    assert not {"content-range", "etag", "content-disposition"} & answer.headers.keys()
    assert_heals(site, uid, whole)


def test_undamaged_ranges_are_sent(site: CartSite) -> None:
    site.stage("half", {"good": LARGE[:MIB], "bad": LARGE[:MIB]})
    whole = site.cartd.get("/half?filename=data.tar").body
    [tree] = site.on_volume("half")
    cut(tree / "bad")
    part = site.cartd.get("/half?filename=data.tar", Range="bytes=0-999999")
    assert (part.status, part.body) == (206, whole[:1_000_000])
    assert site.cartd.status("half") == ("ready", "")


def test_file_truncated_during_download_aborts_it(site: CartSite) -> None:
    site.stage("cut", {"large": LARGE})
    [tree] = site.on_volume("cut")
    assert_breaks_and_heals(site, "cut", lambda: os.truncate(tree / "large", 12 * MIB))


def test_file_removed_before_it_is_sent_aborts_the_download(site: CartSite) -> None:
    site.stage("gone", {"large": LARGE, "later": b"later"})
    [tree] = site.on_volume("gone")
    assert_breaks_and_heals(site, "gone", (tree / "later").unlink)


def test_file_removed_while_it_is_sent_is_completed(site: CartSite) -> None:
    site.stage("unlinked", {"large": LARGE})
    whole = site.cartd.get("/unlinked?filename=data.tar").body
    [tree] = site.on_volume("unlinked")
    with wire(site.port, receive_buffer=64 * 1024) as connection:
        connection.get("/unlinked?filename=data.tar", "Connection: close")
        connection.head()
        first = connection.read(MIB)
        (tree / "large").unlink()
        assert first + connection.rest() == whole


def test_a_bundle_that_was_damaged_is_written_again(site: CartSite) -> None:
    site.stage("bundle", {"large": LARGE}, bundle=True)
    whole = site.cartd.get("/bundle?filename=data.tar").body
    [tar] = site.on_volume("bundle")
    assert_breaks_and_heals(site, "bundle", lambda: os.truncate(tar, 12 * MIB))
    tar.unlink()
    assert site.cartd.get("/bundle").status == 202
    assert_heals(site, "bundle", whole)


def test_lost_bundle_of_an_empty_cart_is_written_again(site: CartSite) -> None:
    site.stage("empty", {}, bundle=True)
    whole = site.cartd.get("/empty?filename=data.tar").body
    [tar] = site.on_volume("empty")
    tar.unlink()
    assert site.cartd.get("/empty").status == 202
    assert_heals(site, "empty", whole)


@pytest.mark.parametrize("bundle", [False, True], ids=["a tree", "a bundle"])
def test_concurrent_ranges_restage_a_damaged_cart_once(site: CartSite, bundle: bool) -> None:
    uid = f"split-{bundle}".lower()
    site.stage(uid, {"one": LARGE[:MIB], "two": LARGE[MIB : 2 * MIB]}, bundle=bundle)
    whole = site.cartd.get(f"/{uid}?filename=data.tar").body
    [found] = site.on_volume(uid)
    cut(found if bundle else found / "one")
    ranges = [(start, start + 99_999) for start in range(0, 1_000_000, 100_000)]

    def part(span: tuple[int, int]) -> Answer:
        return site.cartd.get(f"/{uid}?filename=data.tar", Range=f"bytes={span[0]}-{span[1]}")

    for _ in range(3):
        with ThreadPoolExecutor(len(ranges)) as clients:
            answers = list(clients.map(part, ranges))
        for (start, stop), answer in zip(ranges, answers, strict=True):
            good = (206, whole[start : stop + 1])
            assert (answer.status, answer.body) == good or answer.status == 503
    assert_heals(site, uid, whole)
    assert site.cartd.log.count(f" ({uid}): restaging") == 1


def test_late_abort_leaves_a_restaged_cart_alone(site: CartSite) -> None:
    site.stage("late", {"large": LARGE})
    whole = site.cartd.get("/late?filename=data.tar").body
    [tree] = site.on_volume("late")
    with wire(site.port, receive_buffer=64 * 1024) as connection:
        connection.get("/late?filename=data.tar")
        connection.head()
        connection.read(MIB)
        os.truncate(tree / "large", 12 * MIB)
        assert site.cartd.get("/late").status == 202
        assert_heals(site, "late", whole)
        assert len(connection.rest()) < len(whole)
    wait_for(lambda: site.cartd.log.count("(late) is not sent") == 2)
    assert_heals(site, "late", whole)
    assert site.cartd.log.count(" (late): restaging") == 1


def test_cart_that_cannot_be_restaged_is_in_error(site: CartSite) -> None:
    site.stage("lost", FILES)
    [tree] = site.on_volume("lost")
    [row] = [row for row in site.rows("file") if row["cart_id"] == int(tree.parent.name)
             and row["bundle_path"] == "a/two"]  # fmt: skip
    (site.archive.root / row["file_name"]).unlink()
    cut(tree / "a/two")
    assert site.cartd.get("/lost").status == 202
    wait_for(lambda: site.cartd.status("lost")[0] == "error")
    reason = site.cartd.get("/lost")
    assert reason.status == 500 and "Failed to stage a/two" in reason.json["message"]
