"""The ETag, length and times of a cart's tar, computed without reading its files."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from twisted.internet.task import Clock

from cartd.carts.description import TarDescription
from cartd.carts.download import AccessTimes, Downloads, NotReady, Pins
from cartd.errors import CartNotFound, Conflict, Unavailable
from cartd.http.ranges import Conditions, http_date
from cartd.model import UNRESTRICTED, Cart, CartFormat, TarFacts
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.tar.bag import bag_facts
from cartd.tar.members import Members
from cartd.tar.virtual_tar import LAYOUT_VERSION, tar_facts
from cartd.volume import Volume
from tests.support.built_tars import Member, build_tar, index_of
from tests.support.sqlite_store import SqliteStore
from tests.support.volume_parts import InThisThread, begin, failure_of, result_of

pytest_plugins = ("tests.support.database_fixtures",)

MTIME = 1_234_567_890
FILES = {"1": b"first", "2": b"second" * 200}
ODD = {"ä" * 60: b"first", "b" * 120: b"second"}


class Site:
    """A store with carts that are ready, and their downloads."""

    def __init__(self, store: SqliteStore, root: Path) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.store = store
        self.members_read = 0
        """How often the members of a cart were read."""
        self._read_members = store.carts.members
        store.carts.members = self._count_members  # type: ignore[method-assign]
        self._read_bag_members = store.carts.bag_members
        store.carts.bag_members = self._count_bag_members  # type: ignore[method-assign]
        self.volume = Volume(root, InThisThread())
        self.volume.prepare()
        unused = cast(Any, None)
        self.tar_indexes = TarIndexCache(
            self.store.carts, self.store.statuses, InThisThread(), organization="Institute"
        )
        self.downloads = Downloads(
            self.store,
            self.volume,
            self.tar_indexes,
            Pins(),
            AccessTimes(),
            unused,
            self.clock,
            self.clock.seconds,
        )

    async def _count_members(self, cart_id: int, positions: range) -> Members:
        self.members_read += 1
        return await self._read_members(cart_id, positions)

    async def _count_bag_members(
        self, cart_id: int, positions: range, hash_types: Collection[str]
    ) -> Members:
        self.members_read += 1
        return await self._read_bag_members(cart_id, positions, hash_types)

    def fail(self, cart: Cart, position: int) -> None:
        """Make a ready cart partial: one of its files has failed."""
        self.store.query(
            "UPDATE file SET status = 'error', error = 'gone' WHERE cart_id = ? AND position = ?",
            cart.id,
            position,
        )
        self.store.query(
            "UPDATE cart SET files_failed = files_failed + 1, tar_layout = NULL,"
            " tar_digest = NULL WHERE id = ?",
            cart.id,
        )
        self.tar_indexes.invalidate(cart.id)

    async def read(self, uid: str, name: str | None, format_: CartFormat | None = None) -> bytes:
        """Download the whole tar."""
        async with self.downloads.open(UNRESTRICTED, uid, name, format_) as opened:
            with closing(await opened.reader(0, opened.length)) as reader:
                data = b""
                while step := reader.read(100_000):
                    data += step
        assert len(data) == opened.length
        return data

    def place(self, cart: Cart, files: Mapping[str, bytes]) -> None:
        """Write the files of a cart to the volume."""
        for file, data in zip(self.store.files(cart.id), files.values(), strict=True):
            path = self.volume.paths.member(cart, file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def ready(
        self,
        uid: str,
        files: dict[str, bytes] = FILES,
        *,
        bundle: bool = False,
        volume_bytes: int | None = None,
        updated: float = 0.0,
    ) -> Cart:
        cart = self.store.post(uid, files, bundle=bundle)
        total = sum(map(len, files.values()))
        self.store.reserve(cart, total)
        states = [(at, len(data), MTIME) for at, data in enumerate(files.values())]
        staged = [(at, "") for at in range(len(files))]
        taken = total if volume_bytes is None else volume_bytes
        progress = self.store.progress
        result_of(progress.record_states(cart.id, "me", states))
        result_of(progress.record_staged(cart.id, "me", staged, now=updated))
        result_of(progress.record_ready(cart.id, "me", volume_bytes=taken, now=updated))
        return self.store.cart(cart.id)

    def members(self, cart: Cart) -> list[Member]:
        rows = self.store.files(cart.id)
        return [Member(r.path, r.size or 0, r.mtime or 0, r.hash_type, r.hash_sum) for r in rows]

    def describe(
        self, cart: Cart, name: str | None, format_: CartFormat | None = None
    ) -> TarDescription:
        return result_of(self.downloads.describe(self.store.cart(cart.id), name, format_))

    def facts(self, cart: Cart) -> TarFacts:
        tar = self.store.cart(cart.id).tar
        assert tar is not None
        return tar


@pytest.fixture
def site(tmp_path: Path, sqlite_store: SqliteStore) -> Site:
    return Site(sqlite_store, tmp_path)


NAMES = ["data.tar", "d" * 120, "d" * 200 + ".tar", "ä.tar"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("files", [FILES, ODD], ids=["plain", "odd"])
def test_a_cart_is_described_without_its_members_under_any_name(
    site: Site, files: dict[str, bytes], name: str
) -> None:
    cart = site.ready("mine", files)
    members = site.members(cart)
    result_of(site.store.progress.record_tar(cart.id, tar_facts(index_of(members), 77.0)))
    described = site.describe(cart, name)
    assert site.members_read == 0
    bundle = build_tar(members, top=name.removesuffix(".tar"))
    assert described == TarDescription(name, bundle.length, bundle.etag, 77.0)


def test_members_are_read_only_for_the_bytes_of_a_download(site: Site) -> None:
    cart = site.ready("mine")
    result_of(
        site.store.progress.record_tar(cart.id, tar_facts(index_of(site.members(cart)), 77.0))
    )

    async def download() -> None:
        async with site.downloads.open(UNRESTRICTED, "mine", "data.tar") as opened:
            assert site.members_read == 0
            for start in (0, 512):
                (await opened.reader(start, opened.length)).close()
            assert site.members_read == 1

    result_of(download())


def test_an_unknown_tar_is_measured_once(site: Site) -> None:
    cart = site.ready("mine")
    first = site.describe(cart, "data.tar")
    site.clock.advance(500)
    assert site.describe(cart, "data.tar") == first
    assert first.last_modified == 1000
    assert site.members_read == 1
    assert site.describe(cart, "other.tar").etag != first.etag
    assert site.members_read == 1


def test_another_layout_is_another_tar_from_the_upgrade_on(site: Site) -> None:
    cart = site.ready("mine")
    now = site.describe(cart, "data.tar")
    old = replace(site.facts(cart), layout=LAYOUT_VERSION - 1, since=5.0)
    result_of(site.store.progress.record_tar(cart.id, old))
    site.clock.advance(500)
    described = site.describe(cart, "data.tar")
    assert (described.etag, described.last_modified) == (now.etag, 1500)
    assert site.facts(cart).layout == LAYOUT_VERSION


def test_a_bundled_tar_keeps_its_layout(site: Site) -> None:
    cart = site.ready("mine", bundle=True)
    facts = tar_facts(index_of(site.members(cart)), 77.0)
    result_of(site.store.progress.record_tar(cart.id, facts))
    now = site.describe(cart, "data.tar")
    assert now.etag == build_tar(site.members(cart), top="mine").etag
    assert site.describe(cart, "other.tar").etag == now.etag
    result_of(
        site.store.progress.record_tar(
            cart.id, replace(facts, layout=LAYOUT_VERSION - 1, since=5.0)
        )
    )
    old = site.describe(cart, "data.tar")
    assert old.etag != now.etag
    assert (old.length, old.last_modified) == (now.length, 5.0)
    assert site.members_read == 0


def test_a_restaged_tar_of_pacifica_has_new_validators(
    site: Site,
) -> None:
    cart = site.ready("mine", bundle=True, volume_bytes=10_240, updated=3.5)
    site.store.from_pacifica(cart)
    pacifica = site.describe(cart, "data.tar")
    assert (pacifica.length, pacifica.last_modified) == (10_240, 3.5)
    result_of(
        site.store.progress.record_tar(cart.id, tar_facts(index_of(site.members(cart)), 77.0))
    )
    ours = site.describe(cart, "data.tar")
    assert (ours.length, ours.last_modified) == (10_240, 77.0)
    assert ours.etag != pacifica.etag


def test_bytes_other_than_announced_are_not_sent(site: Site) -> None:
    cart = site.ready("mine")
    before = site.describe(cart, "data.tar")
    site.store.query("UPDATE file SET mtime = mtime + 1 WHERE cart_id = ?", cart.id)

    async def download() -> None:
        async with site.downloads.open(UNRESTRICTED, "mine", "data.tar") as opened:
            site.tar_indexes.invalidate(cart.id)
            await opened.reader(0, opened.length)

    site.clock.advance(500)
    assert isinstance(failure_of(begin(download())), NotReady)
    after = site.describe(cart, "data.tar")
    assert (after.etag != before.etag, after.last_modified) == (True, 1500)


def test_a_cart_that_was_deleted_has_no_description(site: Site) -> None:
    cart = site.ready("mine")
    result_of(site.store.removals.mark_deleted(cart.id, 1))
    described = begin(site.downloads.describe(cart, "data.tar"))
    assert isinstance(failure_of(described), CartNotFound)


def names_in(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=BytesIO(tar)) as opened:
        return [info.name for info in opened if info.isreg()]


BAG = CartFormat.BAG


def test_a_bag_is_measured_once_and_then_described_by_the_row_alone(site: Site) -> None:
    cart = site.ready("mine")
    tar = site.describe(cart, "data.tar")
    first = site.describe(cart, "data.tar", BAG)
    assert (first.format, first.last_modified) == (BAG, 1000)
    assert first.etag != tar.etag
    assert site.members_read == 2
    site.clock.advance(500)
    site.tar_indexes.invalidate(cart.id)
    assert site.describe(cart, "data.tar", BAG) == first
    assert site.describe(cart, "ä" * 99, BAG).length >= first.length
    assert site.members_read == 2


def test_a_bag_is_measured_again_when_the_tar_has_changed(site: Site) -> None:
    cart = site.ready("mine")
    first = site.describe(cart, "data.tar", BAG)
    site.store.query("UPDATE file SET mtime = mtime + 1 WHERE cart_id = ?", cart.id)
    # Another process has staged the cart again.
    facts = tar_facts(index_of(site.members(cart)), 1200.0)
    result_of(site.store.progress.record_tar(cart.id, facts))
    second = site.describe(cart, "data.tar", BAG)
    assert second.etag != first.etag
    assert second.last_modified == 1001  # a bag's second has no other bag


def test_bytes_of_a_bag_other_than_announced_are_not_sent(site: Site) -> None:
    cart = site.ready("mine")
    before = site.describe(cart, "data.tar", BAG)
    site.store.query(
        "UPDATE file SET also_hash_type = 'sha512', also_hash_value = ? WHERE cart_id = ?",
        "ab" * 64,
        cart.id,
    )

    async def download() -> None:
        async with site.downloads.open(UNRESTRICTED, "mine", "data.tar", BAG) as opened:
            site.tar_indexes.invalidate(cart.id)
            await opened.reader(0, opened.length)

    assert isinstance(failure_of(begin(download())), NotReady)
    after = site.describe(cart, "data.tar", BAG)
    assert after.etag != before.etag
    cart = site.store.cart(cart.id)
    assert cart.bag is not None and '"algorithm":"sha512"' in cart.bag


def test_a_tar_that_pacifica_wrote_is_no_bag(site: Site) -> None:
    cart = site.ready("mine", bundle=True, volume_bytes=10_240)
    site.store.from_pacifica(cart)
    described = begin(site.downloads.describe(site.store.cart(cart.id), None, BAG))
    assert isinstance(failure_of(described), Conflict)
    assert site.describe(cart, None, CartFormat.TAR) == site.describe(cart, None)


@pytest.mark.parametrize(("stored", "other"), [("tar", "bag"), ("bag", "tar")])
def test_a_stored_tar_of_another_layout_is_sent_only_as_it_is(
    site: Site, stored: str, other: str
) -> None:
    cart = site.ready("mine", bundle=True)
    site.store.query("UPDATE cart SET format = ?", stored)
    index = index_of(site.members(cart))
    result_of(site.store.progress.record_tar(cart.id, tar_facts(index, 77.0)))
    cart = site.store.cart(cart.id)
    bag = bag_facts(result_of(site.tar_indexes.get(cart, BAG)), 77.0)
    result_of(site.store.progress.record_bag(cart.id, bag.dumped()))
    now = site.describe(cart, None)
    assert site.describe(cart, None, CartFormat(other)).etag != now.etag

    layout = {"layout": "bag-0"} if stored == "bag" else {}
    old = msgspec.structs.replace(bag, **layout)
    result_of(site.store.progress.record_bag(cart.id, old.dumped()))
    if stored == "tar":
        site.store.query("UPDATE cart SET tar_layout = 0")
    described = begin(site.downloads.describe(site.store.cart(cart.id), None, CartFormat(other)))
    assert isinstance(failure_of(described), Conflict)
    then = site.describe(cart, None)
    assert (then.length, then.etag == now.etag) == (now.length, False)


def test_the_date_of_a_bag_is_strong_only_without_other_bags(site: Site) -> None:
    cart = site.ready("mine")
    site.clock.advance(2000)
    dated = Conditions(
        range="bytes=0-0", if_range=http_date(site.describe(cart, "x", BAG).last_modified)
    )
    site.clock.advance(2000)

    def status() -> int:
        now = site.store.cart(cart.id)
        bag = site.describe(now, "x", BAG)
        decided = site.downloads.evaluate_conditions("GET", dated, now, bag)
        return result_of(decided).status

    assert status() == 206
    site.describe(site.ready("mine"), "x", BAG)
    assert status() == 200


@pytest.mark.parametrize("format_", CartFormat)
def test_a_partial_cart_lists_what_is_missing(site: Site, format_: CartFormat) -> None:
    cart = site.ready("mine")
    site.place(cart, FILES)
    whole = site.describe(cart, "data.tar", format_)
    site.fail(cart, 1)
    site.clock.advance(1000)
    partial = site.describe(cart, "data.tar", format_)
    assert partial.etag != whole.etag and partial.last_modified > whole.last_modified
    names = names_in(result_of(site.read("mine", "data.tar", format_)))
    if format_ is BAG:
        assert "data/missing.json" in names and names[-1] == "data/data/dir/1"
    else:
        assert names == ["data.missing.json", "data/dir/1"]


def test_all_files_may_be_missing(site: Site) -> None:
    cart = site.ready("mine")
    for position in range(2):
        site.fail(cart, position)
    assert names_in(result_of(site.read("mine", "x"))) == ["x.missing.json"]
    names = names_in(result_of(site.read("mine", "x", BAG)))
    assert "x/manifest-sha512.txt" in names and "x/missing.json" in names


def test_a_retry_does_not_mix_two_tars(site: Site) -> None:
    cart = site.ready("mine")
    site.place(cart, FILES)
    site.fail(cart, 1)
    whole = result_of(site.read("mine", "x"))

    async def download() -> bytes:
        async with site.downloads.open(UNRESTRICTED, "mine", "x") as opened:
            reader = await opened.reader(0, opened.length)
            begun = reader.read(700)
            # The retry is successful, and the cart ready again, as in another process.
            site.store.query("UPDATE file SET status = 'staged', error = ''")
            site.store.query("UPDATE cart SET files_failed = 0")
            facts = tar_facts(index_of(site.members(cart)), 1200.0)
            await site.store.progress.record_tar(cart.id, facts)
            rest = b"".join(iter(lambda: reader.read(1000), b""))
            reader.close()
            site.tar_indexes.invalidate(cart.id)
            with pytest.raises(Unavailable):  # what was announced cannot be computed any more
                await opened.reader(0, 5)
            return begun + rest

    assert result_of(download()) == whole
    assert names_in(result_of(site.read("mine", "x"))) == ["x/dir/1", "x/dir/2"]
