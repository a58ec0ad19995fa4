"""``cartd-cmd verify`` finds and repairs damage that names and sizes do not show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cartd.cli.carts import Verify
from cartd.integrity.scrub import CartVerifier, Damage
from cartd.model import Cart, CartStatus
from tests.support.cart_site import CartSite, cart_site
from tests.support.volume_parts import result_of


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        yield running


def verify(site: CartSite, *arguments: str) -> tuple[int, list[str]]:
    done = site.cartd.run("cartd-cmd", "verify", *arguments, check=False)
    return done.returncode, done.stdout.splitlines()


def spoil(path: Path) -> None:
    """Overwrite with other bytes of the same length, keeping the modification time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_verify_reports_an_intact_cart(site: CartSite) -> None:
    site.stage("right", {"a": b"aaa", "b/c": bytes(2_000_000)})
    site.stage("right-bundle", {"a": b"right", "b/c": bytes(1000)}, bundle=True)
    assert verify(site, "--cartid", "right", "right-bundle", "right") == (
        0,
        ["right: 2 files, 2,000,003 bytes, intact", "right-bundle: 2 files, 1,005 bytes, intact"],
    )


def test_verify_names_each_damage_and_changes_nothing(site: CartSite) -> None:
    files = {name: name.encode() * 100 for name in ("spoilt", "cut", "lost", "folder", "fine")}
    site.stage("damaged", files)
    [tree] = site.on_volume("damaged")
    spoil(tree / "spoilt")
    os.truncate(tree / "cut", 7)
    (tree / "lost").unlink()
    (tree / "folder").unlink()
    (tree / "folder").mkdir()
    expected = [
        "damaged: spoilt does not match its hash",
        "damaged: cut has 7 bytes where 300 were recorded",
        "damaged: lost is missing",
        "damaged: folder is not a regular file",
        "damaged: 4 of 5 files damaged",
    ]
    for _ in range(2):
        assert verify(site, "--cartid", "damaged") == (1, expected)
    assert site.cartd.status("damaged")[0] == "ready"


def test_a_bundle_is_read_member_by_member(site: CartSite) -> None:
    site.stage("tarred", {"a": b"first" * 1000, "b": b"second" * 1000}, bundle=True)
    [tar] = site.on_volume("tarred")
    data = tar.read_bytes()
    place = data.index(b"second" * 1000) + 11
    tar.write_bytes(data[:place] + b"X" + data[place + 1 :])
    assert verify(site, "--cartid", "tarred") == (
        1,
        ["tarred: b does not match its hash", "tarred: 1 of 2 files damaged"],
    )
    assert verify(site, "--cartid", "tarred", "--repair")[0] == 0
    assert site.on_volume("tarred")[0].read_bytes() == data


@pytest.mark.parametrize("how", ["cut", "lost"])
def test_a_broken_bundle_loses_the_members_behind(site: CartSite, how: str) -> None:
    uid = f"tar-{how}"
    site.stage(uid, {"a": b"first" * 1000, "b": b"second" * 1000}, bundle=True)
    [tar] = site.on_volume(uid)
    if how == "cut":
        os.truncate(tar, 4000)
    else:
        tar.unlink()
    status, lines = verify(site, "--cartid", uid)
    assert status == 1 and lines[-1] == f"{uid}: 2 of 2 files damaged"


def test_verify_repairs_damage_beside_the_service(site: CartSite) -> None:
    files = {"spoilt": b"spoilt" * 100, "fine": b"fine" * 100}
    site.stage("healed", files)
    [tree] = site.on_volume("healed")
    spoil(tree / "spoilt")
    status, lines = verify(site, "--cartid", "healed", "--repair")
    assert (status, lines[-1]) == (0, "healed: repaired and intact")
    assert site.cartd.download("healed") == files
    assert verify(site, "--cartid", "healed")[0] == 0


def test_damage_in_a_shared_file_is_not_copied_back(site: CartSite) -> None:
    """The carts share the damaged file; each is repaired from the archive."""
    files = {"spoilt": os.urandom(5000), "fine": os.urandom(5000)}
    manifest = site.manifest(files)
    for uid in ("shared-a", "shared-b"):
        assert site.cartd.post(uid, manifest).status == 201
        site.cartd.wait_until(uid, "ready")
    [one], [other] = site.on_volume("shared-a"), site.on_volume("shared-b")
    assert (one / "spoilt").samefile(other / "spoilt")
    spoil(one / "spoilt")
    status, lines = verify(site, "--cartid", "shared-a", "shared-b", "--repair")
    assert status == 0
    assert [line for line in lines if "does not match" in line] == [
        f"{uid}: spoilt does not match its hash" for uid in ("shared-a", "shared-b")
    ]
    for uid in ("shared-a", "shared-b"):
        assert site.cartd.download(uid) == files
    assert (one / "spoilt").samefile(other / "spoilt")


class StillDamaged(CartVerifier):
    """A disk that corrupts everything written to it."""

    def __init__(self) -> None:
        self.checks = 0

    async def damages(self, cart: Cart, read: object) -> list[Damage]:
        self.checks += 1
        return [Damage(0, "x/data", "does not match its hash")]


def test_verify_checks_again_after_a_repair() -> None:
    cart = Cart(1, "mine", CartStatus.READY, 0, 0, 0, files_total=2)

    class Carts:
        async def cart(self, _: int) -> Cart:
            return cart

    async def restore(_: Cart, damaged: Sequence[int]) -> bool:
        assert damaged == [0]
        return True

    out, verification = StringIO(), StillDamaged()
    store, unused = cast(Any, SimpleNamespace(carts=Carts())), cast(Any, None)
    command = Verify(store, verification, unused, restore, out, StringIO(), lambda: 0.0)
    assert result_of(command.cart(cart)) is False
    assert verification.checks == 2
    assert out.getvalue().splitlines() == [
        "mine: x/data does not match its hash",
        "mine: 1 of 2 files damaged",
        "mine: x/data does not match its hash",
        "mine: 1 of 2 files damaged",
        "mine: damaged again after the repair: check the volume's disk",
    ]


def test_missing_and_unready_carts_are_not_verified(site: CartSite) -> None:
    missing = site.manifest({"a": b"never"})
    for path in site.archive.root.iterdir():
        if path.read_bytes() == b"never":
            path.unlink()
    assert site.cartd.post("failed", missing).status == 201
    site.cartd.wait_until("failed", "error")
    assert verify(site, "--cartid", "nobody", "failed") == (
        1,
        ["nobody: no such cart", "failed: not verified, its status is error"],
    )
