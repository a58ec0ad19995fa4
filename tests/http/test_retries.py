"""A cart in error is staged again by its owner: only what failed, within the limits of a post."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from cartd.store import sync
from tests.support.cart_site import CartSite, cart_site
from tests.support.cartd_with_archive import cartd_with_archive
from tests.support.databases import Postgres
from tests.support.running_cartd import (
    Answer,
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    wait_for,
)
from tests.support.served_directory import served_directory

pytest_plugins = ("tests.support.database_fixtures",)
FAST = "[archiveinterface]\nmax_attempts = 1\n"
USERS = "[auth]\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site"), ini=FAST) as running:
        yield running


def retry(cartd: RunningCartd, uid: str, **headers: str) -> Answer:
    return cartd.request("POST", f"/-/carts/{uid}/retry", b"", **headers)


def broken(site: CartSite, uid: str) -> list[dict[str, Any]]:
    """Post a cart of which one file is not in the archive yet; return its entries."""
    entries = [entry(f"{uid}-{name}", name, name.encode()) for name in ("here", "late")]
    site.archive.put(f"{uid}-here", b"here")
    site.cartd.post(uid, manifest(entries, labels=["kept"]))
    site.cartd.wait_until(uid, "error")
    return entries


def test_a_retry_makes_a_cart_ready(site: CartSite) -> None:
    broken(site, "mended")
    site.archive.put("mended-late", b"late")

    answer = retry(site.cartd, "mended")

    assert answer.status == 202 and answer.json["uid"] == "mended"
    assert answer.headers["link"] == '</-/carts/mended>; rel="monitor"'
    assert int(answer.headers["retry-after"]) >= 1
    site.cartd.wait_until("mended", "ready")
    assert site.cartd.download("mended") == {"here": b"here", "late": b"late"}
    document = site.cartd.get("/-/carts/mended").json
    assert document["labels"] == ["kept"] and document["files"]["failed"] == 0
    # It is the same cart: nothing was posted.
    assert len(site.on_volume("mended")) == 1


@pytest_twisted.ensureDeferred
async def test_a_retry_fetches_only_what_failed(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, FAST) as (cartd, archive):
        archive.put("1", b"one")
        entries = [entry("1", "one", b"one"), entry("2", "two", b"two")]
        await deferToThread(cartd.post, "u", manifest(entries))
        await deferToThread(cartd.wait_until, "u", "error")
        asked = len(archive.requests)
        archive.put("2", b"two")

        assert (await deferToThread(retry, cartd, "u")).status == 202
        await deferToThread(cartd.wait_until, "u", "ready")

        assert {one.target for one in archive.requests[asked:]} == {"/2"}


def test_a_retry_that_fails_ends_in_error_again(site: CartSite) -> None:
    broken(site, "hopeless")
    before = site.cartd.get("/-/carts/hopeless").json

    assert retry(site.cartd, "hopeless").status == 202

    def again() -> bool:
        now = site.cartd.get("/-/carts/hopeless").json
        return bool(now["status"] == "error" and now["version"] > before["version"])

    wait_for(again)
    [file] = site.cartd.get("/-/carts/hopeless/files?status=failed").json["files"]
    assert file["path"] == "late" and "404" in file["error"]


def test_a_cart_that_is_not_in_error_is_not_retried(site: CartSite) -> None:
    site.stage("fine", {"a": b"data"})
    answer = retry(site.cartd, "fine")
    assert (answer.status, answer.json["detail"]) == (
        409,
        "The cart is ready and has all its files: only a cart in error or a partial one can be"
        " staged again",
    )
    assert retry(site.cartd, "nobody").status == 404
    broken(site, "deleted")
    site.cartd.delete("deleted")
    assert retry(site.cartd, "deleted").status == 404


def test_a_cart_that_is_being_staged_is_not_retried(tmp_path: Path) -> None:
    with running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:1/") as cartd:
        cartd.post("waits", manifest([entry(1, "a", b"")]))
        answer = retry(cartd, "waits")
        assert answer.status == 409 and "being staged" in answer.json["detail"]


def test_many_retries_at_once_stage_a_cart_once(site: CartSite) -> None:
    broken(site, "often")
    site.archive.put("often-late", b"late")
    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(lambda _: retry(site.cartd, "often").status, range(8)))
    assert codes <= {202, 409} and 202 in codes
    site.cartd.wait_until("often", "ready")
    assert site.cartd.download("often") == {"here": b"here", "late": b"late"}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_retry_is_for_the_owner_within_the_owners_limits(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = ""
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        server.execute("DROP DATABASE IF EXISTS retries")
        server.execute("CREATE DATABASE retries")
        sync(url := server.url("retries"))
    ini = f"{USERS}max_carts_staging = 1\n{FAST}"
    with (
        served_directory(tmp_path, "--tape-delay=1e8") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, database=url, ini=ini) as cartd,
    ):

        def ended() -> bool:
            return bool(cartd.get("/-/carts/u", x_user="ada").json["status"] == "error")

        body = manifest([entry("missing", "a", b"")])
        assert cartd.request("POST", "/u", body, x_user="ada").status == 201
        wait_for(ended)
        assert retry(cartd, "u", x_user="bob").status == 404
        assert cartd.get("/-/carts/u", x_user="ada").json["status"] == "error"
        assert retry(cartd, "u", x_user="ada").status == 202
        wait_for(ended)

        archive.put("taped", b"data")
        other = manifest([entry("taped", "a", b"data")])
        assert cartd.request("POST", "/waits", other, x_user="ada").status == 201
        refused = retry(cartd, "u", x_user="ada")
        assert (refused.status, refused.json["limit"]) == (429, "auth.max_carts_staging")
        # Nothing was changed: its files still have their errors.
        answer = cartd.get("/-/carts/u/files?status=failed", x_user="ada")
        assert len(answer.json["files"]) == 1
