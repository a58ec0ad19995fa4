"""Plans: what a cart would take, from the real service, the real store and an archive."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from cartd.carts.plan import MAX_ASKED, MAX_PLANS, WINDOW
from cartd.store import sync
from tests.support.archive_faults import Hang
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
USERS = "[auth]\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        yield running


def plan(cartd: RunningCartd, body: bytes, **headers: str) -> Answer:
    return cartd.request("POST", "/-/plan", body, **headers)


def test_a_plan_tells_where_files_are_and_enters_nothing(site: CartSite) -> None:
    site.stage("staged", {"a": b"on the volume"})
    [staged] = site.cartd.get("/-/carts/staged/files").json["files"]
    site.archive.put("on-disk", b"on disk")
    entries = [
        {key: staged[key] for key in ("id", "hashtype", "hashsum")} | {"path": "x/a"},
        entry("on-disk", "b", b"on disk"),
        entry("nowhere", "c", b""),
    ]
    carts, files = len(site.rows("cart")), len(site.rows("file"))

    answer = plan(site.cartd, manifest(entries))

    assert answer.status == 200
    found = answer.json
    [fault] = found.pop("faults")
    assert "404" in fault.pop("error")
    assert fault == {
        "position": 2,
        "id": "nowhere",
        "path": "c",
        "problem": "file-not-in-archive",
    }
    assert found == {
        "complete": True,
        "message": "1 of 3 files cannot be staged now",
        "files": {
            "total": 3,
            "on_volume": 1,
            "on_disk": 1,
            "on_tape": 0,
            "missing": 1,
            "failed": 0,
            "unknown": 0,
        },
        "bytes": {"on_volume": 13, "on_disk": 7, "on_tape": 0},
        "outcome": "failed",
        "limits": [],
    }
    assert (len(site.rows("cart")), len(site.rows("file"))) == (carts, files)


def test_a_plan_of_known_files_tells_the_size_and_the_space(site: CartSite) -> None:
    found = plan(site.cartd, site.manifest({"a": b"12345", "b": b"678"})).json
    assert (found["bytes"]["total"], found["space"], found["complete"]) == (8, "now", True)
    assert found["message"] == "All files were found"
    assert plan(site.cartd, manifest([])).json["space"] == "now"


@pytest.mark.parametrize(
    ("max_failed", "outcome", "message"),
    [
        (0, "failed", "1 of 2 files cannot be staged now"),
        (1, "partial", "1 of 2 files cannot be staged now; the cart would be partial"),
        ("50%", "partial", "1 of 2 files cannot be staged now; the cart would be partial"),
    ],
)
def test_a_plan_tells_whether_the_cart_would_be_partial(
    site: CartSite, max_failed: int | str, outcome: str, message: str
) -> None:
    site.archive.put("on-disk", b"on disk")
    entries = [entry("on-disk", "b", b"on disk"), entry("nowhere", "c", b"")]
    found = plan(
        site.cartd, manifest(entries, on_error="partial", max_failed=max_failed, bundle=True)
    ).json
    assert (found["outcome"], found["message"]) == (outcome, message)
    assert found["bytes"].get("total") == (7 if outcome == "partial" else None)
    assert found.get("space") == ("now" if outcome == "partial" else None)


def test_an_invalid_manifest_has_no_plan(site: CartSite) -> None:
    answer = plan(site.cartd, manifest([entry("1", "../a", b"")]))
    assert answer.status == 400 and "fileids[0].path" in answer.json["detail"]
    assert plan(site.cartd, b"").status == 400


def test_files_without_a_hash_or_with_another_are_not_on_the_volume(site: CartSite) -> None:
    site.stage("hashed", {"a": b"data"})
    [staged] = site.cartd.get("/-/carts/hashed/files").json["files"]
    same = {key: staged[key] for key in ("id", "hashtype", "path")}
    for hash_sum in ("", "0" * 40):
        found = plan(site.cartd, manifest([{**same, "hashsum": hash_sum}])).json
        assert (found["files"]["on_volume"], found["files"]["on_disk"]) == (0, 1)


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site with a small volume whose files are on tape."""
    ini = "[cartd]\nvolume_quota = 1 KB\nmax_carts_staging = 1\n"
    with cart_site(tmp_path_factory.mktemp("tapes"), "--tape-delay=1e8", ini=ini) as running:
        yield running


def test_files_on_tape_are_counted_and_not_recalled(tapes: CartSite) -> None:
    body = tapes.manifest({"a": b"data"})
    for _ in range(2):
        found = plan(tapes.cartd, body).json
        assert (found["files"]["on_tape"], found["bytes"]["on_tape"]) == (1, 4)


@pytest.mark.parametrize(("bundle", "space"), [(False, "now"), (True, "no")])
def test_a_bundle_needs_twice_the_space(tapes: CartSite, bundle: bool, space: str) -> None:
    body = tapes.manifest({"a": b"x" * 700}, bundle=bundle)
    assert plan(tapes.cartd, body).json["space"] == space


def test_a_cart_that_is_too_large_has_no_space_although_files_are_unknown(tapes: CartSite) -> None:
    found = plan(tapes.cartd, tapes.manifest({"a": b"x" * 1001})).json
    assert found["space"] == "no"


def test_the_archive_is_asked_for_a_limited_number_of_files(site: CartSite) -> None:
    site.archive.put("one", b"1")
    entries = [entry("one", f"f{number}", b"1") for number in range(MAX_ASKED + 5)]
    found = plan(site.cartd, manifest(entries)).json
    assert found["files"]["on_disk"] == MAX_ASKED and found["files"]["unknown"] == 5
    assert not found["complete"] and "total" not in found["bytes"] and "space" not in found
    assert found["message"] == (
        "1,000 of 1,005 files were looked up: a plan asks the archive for 1,000 files at most"
    )


def test_an_archive_that_is_down_leaves_files_unknown(tmp_path: Path) -> None:
    with running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:1/") as cartd:
        for _ in range(2):
            found = plan(cartd, manifest([entry(n, f"f{n}", b"") for n in range(50)])).json
            assert found["files"]["unknown"] == 50 and not found["complete"]
            assert "the archive is unavailable" in found["message"]
        # While carts wait for it, it is not asked at all.
        cartd.post("waits", manifest([entry(1, "a", b"")]))
        wait_for(lambda: waits_for(cartd, "waits") == "archive")
        found = plan(cartd, manifest([entry(1, "a", b"")])).json
        assert "carts wait for it" in found["message"]


def waits_for(cartd: RunningCartd, uid: str) -> object:
    return cartd.get(f"/-/carts/{uid}").json.get("waiting", {}).get("for")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_limits_of_a_user_are_told(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = ""
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        server.execute("DROP DATABASE IF EXISTS plans")
        server.execute("CREATE DATABASE plans")
        sync(url := server.url("plans"))
    ini = f"{USERS}max_files = 3\n[cartd]\nmax_carts_staging = 1\n"
    with (
        served_directory(tmp_path, "--tape-delay=1e8") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, database=url, ini=ini) as cartd,
    ):
        archive.put("1", b"data")
        body = manifest([entry(1, f"f{number}", b"data") for number in range(2)])
        assert plan(cartd, body, x_user="ada").json["limits"] == []
        assert cartd.request("POST", "/u", body, x_user="ada").status == 201

        def limits(user: str) -> list[str]:
            found: Any = plan(cartd, body, x_user=user).json
            assert found["files"]["on_tape"] == 2
            return [limit["limit"] for limit in found["limits"]]

        assert limits("ada") == ["cartd.max_carts_staging", "auth.max_files"]
        assert limits("bob") == ["cartd.max_carts_staging"]


def leaving(cartd: RunningCartd, body: bytes, user: str = "ada") -> socket.socket:
    """Ask for a plan, and return the connection."""
    connection = socket.create_connection(("127.0.0.1", cartd.port))
    head = f"Host: localhost\r\nX-User: {user}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(f"POST /-/plan HTTP/1.1\r\n{head}".encode() + body)
    return connection


@pytest_twisted.ensureDeferred
async def test_a_plan_ends_when_the_client_leaves(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, USERS) as (cartd, archive):
        body = manifest([entry(n, f"f{n}", b"") for n in range(100)])
        archive.fault("*", lambda request, file: [Hang()], times=None)

        def one_after_the_other() -> None:
            for _ in range(3):
                seen = len(archive.requests)
                connection = leaving(cartd, body)
                wait_for(lambda seen=seen: len(archive.requests) > seen)
                # One plan at a time for one user.
                refused = plan(cartd, body, x_user="ada")
                assert refused.status == 429 and "A plan is being made" in refused.json["detail"]
                connection.close()
                wait_for(lambda: archive.open_connections == 0)

        await deferToThread(one_after_the_other)
        assert len(archive.requests) <= 3 * WINDOW


@pytest_twisted.ensureDeferred
async def test_few_plans_are_made_at_a_time_and_the_service_stops(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, USERS) as (cartd, archive):
        body = manifest([entry(1, "a", b"")])
        archive.fault("*", lambda request, file: [Hang()], times=None)

        def many() -> None:
            for number in range(MAX_PLANS):
                seen = len(archive.requests)
                connections.append(leaving(cartd, body, f"user{number}"))
                wait_for(lambda seen=seen: len(archive.requests) > seen)
            refused = plan(cartd, body, x_user="eve")
            assert refused.status == 503 and "retry-after" in refused.headers

        connections: list[socket.socket] = []
        await deferToThread(many)
        assert await deferToThread(cartd.terminate) == 0
        for connection in connections:
            connection.close()


def test_plans_at_once_are_the_same(site: CartSite) -> None:
    body = site.manifest({f"f{number}": b"data" for number in range(20)})
    with ThreadPoolExecutor(MAX_PLANS) as pool:
        answers = list(pool.map(lambda _: plan(site.cartd, body).json, range(MAX_PLANS)))
    assert all(answer == answers[0] for answer in answers)
