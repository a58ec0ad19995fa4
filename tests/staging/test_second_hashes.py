"""``also_hash``: a second hash of each file is computed while its bytes pass."""

from __future__ import annotations

from dataclasses import replace
from hashlib import new
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from cartd.model import Cart, CartStatus
from cartd.staging.pipeline import StagingPipeline
from cartd.volume.incoming import BLOCK
from tests.support.sqlite_store import SqliteStore
from tests.support.staging_parts import Bench
from tests.support.volume_parts import outcome, result_of

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"1": b"one", "2": b"", "3": bytes(range(256)) * (3 * BLOCK // 256) + b"end"}


@pytest.fixture
def bench(tmp_path: Path, sqlite_store: SqliteStore) -> Bench:
    return Bench(sqlite_store, tmp_path / "volume", FILES)


def stage(bench: Bench, cart: Cart, also_hash: str | None, *, resumed: bool = False) -> None:
    held = bench.store.lease_to(cart, "me", until=1000.0)
    context = replace(bench.context(), also_hash=also_hash)
    staging = StagingPipeline(context, held, "me", resumed=resumed)
    assert outcome(Deferred.fromCoroutine(staging.run())) == [None]
    assert bench.store.cart(cart.id).status is CartStatus.READY


def also(bench: Bench, cart: Cart) -> dict[str, Any]:
    """Return the second hash of each file."""
    return {
        file.archive_id: file.also_hash_type and (file.also_hash_type, file.also_hash_sum)
        for file in bench.store.files(cart.id)
    }


def right(hash_type: str) -> dict[str, Any]:
    return {name: (hash_type, new(hash_type, data).hexdigest()) for name, data in FILES.items()}


async def _no_throttle(_: int) -> None:
    pass


def faults(bench: Bench, cart: Cart) -> list[str]:
    now = bench.store.cart(cart.id)
    return result_of(
        bench.volume.verification.faults(now, bench.store.files(cart.id), _no_throttle)
    )


@pytest.mark.parametrize("bundle", [False, True])
def test_fetched_files_have_a_second_hash(bench: Bench, bundle: bool) -> None:
    cart = bench.put(bundle=bundle)
    stage(bench, cart, "sha256")
    assert also(bench, cart) == right("sha256")
    assert faults(bench, cart) == ["", "", ""]


@pytest.mark.parametrize("also_hash", [None, "sha1"])
def test_without_the_setting_and_for_the_same_hash_there_is_none(
    bench: Bench, also_hash: str | None
) -> None:
    cart = bench.put()
    stage(bench, cart, also_hash)
    assert also(bench, cart) == dict.fromkeys(FILES)


def test_a_linked_file_has_the_second_hash_of_its_source(bench: Bench) -> None:
    first = bench.put(["1", "3"], uid="first")
    stage(bench, first, "sha512")
    # It is not computed again: this one is copied.
    bench.store.query("UPDATE file SET also_hash_value = 'ff' WHERE file_name = '3'")
    for setting in ("sha512", None):
        cart = bench.put(uid=f"again with {setting}")
        stage(bench, cart, setting)
        assert also(bench, cart) == {**right("sha512"), "3": ("sha512", "ff")}
    assert bench.archive.times("GET", "1") == 1


@pytest.mark.parametrize("before", [None, "sha512"])
def test_a_second_hash_that_the_source_of_a_link_lacks_is_computed(
    bench: Bench, before: str | None
) -> None:
    first = bench.put(["1", "3"], uid="first")
    stage(bench, first, before)
    of_first = also(bench, first)
    cart = bench.put(uid="again")
    stage(bench, cart, "sha256")
    assert also(bench, cart) == right("sha256")
    assert bench.archive.times("GET", "3") == 1
    # The source stays as it is: its cart may have been sent as a bag.
    assert also(bench, first) == of_first


def test_a_file_that_is_linked_again_keeps_the_type_of_its_second_hash(bench: Bench) -> None:
    cart = bench.put(uid="first")
    stage(bench, cart, "sha512")
    stage(bench, bench.put(["1"], uid="other"), None)
    bench.store.query("UPDATE file SET also_hash_type = NULL WHERE cart_id != ?", cart.id)
    bench.volume.paths.member(cart, "dir/1").unlink()
    bench.store.restage(cart, [0])

    stage(bench, bench.store.cart(cart.id), "sha256", resumed=True)

    assert bench.archive.times("GET", "1") == 1
    assert also(bench, cart) == right("sha512")


def test_a_damaged_source_gives_no_second_hash(bench: Bench) -> None:
    first = bench.put(["1", "3"], uid="first")
    stage(bench, first, None)
    bench.volume.paths.member(first, "dir/1").write_bytes(b"bad")
    cart = bench.put(uid="again")
    stage(bench, cart, "sha256")
    assert also(bench, cart) == right("sha256")
    assert bench.archive.times("GET", "1") == 2


def test_a_file_that_was_placed_but_not_recorded_gets_its_second_hash(bench: Bench) -> None:
    """As after kill -9 between placing and recording."""
    cart = bench.put()
    for name, data in FILES.items():
        path = bench.volume.paths.member(cart, f"dir/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for file in bench.store.files(cart.id):
        bench.store.query(
            "UPDATE file SET size = ?, mtime = 1 WHERE id = ?", len(FILES[file.archive_id]), file.id
        )
    bench.store.reserve(cart, sum(map(len, FILES.values())))

    stage(bench, bench.store.cart(cart.id), "sha256", resumed=True)

    assert bench.archive.times("GET") == 0
    assert also(bench, cart) == right("sha256")


@pytest.mark.parametrize("setting", [None, "sha256"])
def test_a_restaged_file_keeps_the_type_of_its_second_hash(
    bench: Bench, setting: str | None
) -> None:
    cart = bench.put()
    stage(bench, cart, "sha512")
    bench.volume.paths.member(cart, "dir/1").unlink()
    bench.store.query("UPDATE file SET also_hash_value = 'ff' WHERE file_name = '1'")
    bench.store.restage(cart, [0])

    stage(bench, bench.store.cart(cart.id), setting, resumed=True)

    assert bench.archive.times("GET", "1") == 2
    assert also(bench, cart) == right("sha512")


@pytest.mark.parametrize("bundle", [False, True])
def test_a_wrong_second_hash_is_found_and_replaced(bench: Bench, bundle: bool) -> None:
    cart = bench.put(bundle=bundle)
    stage(bench, cart, "sha256")
    bench.store.query("UPDATE file SET also_hash_value = 'ff' WHERE file_name = '3'")

    assert faults(bench, cart) == ["", "", "does not match its second hash"]

    bench.store.restage(cart, [0, 1, 2] if bundle else [2])
    stage(bench, bench.store.cart(cart.id), None, resumed=True)
    assert also(bench, cart) == right("sha256") and faults(bench, cart) == ["", "", ""]
