"""Authenticated users: each sees only their own carts, and all get fair shares of staging."""

from __future__ import annotations

from pathlib import Path

from tests.support.archive_faults import Gate, honest, steps
from tests.support.archived_carts import in_a_thread, manifest_of, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import (
    Answer,
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    unpacked,
)
from tests.support.user_header import Client, trusting_user_header

pytest_plugins = ("tests.support.archive_fixtures",)

SHARES = """
[auth]
max_carts_staging = 2
max_files = 5
"""
"""Of the third limit a running service shows nothing that the store does not."""
CARTS = FILES = 20


def start(cartd: RunningCartd) -> tuple[Client, Client, Client, Client]:
    """Return clients of two users, of an admin, and one that is not authenticated."""
    cartd.program = trusting_user_header(cartd.twistd)
    cartd.start()
    return Client(cartd, "ada"), Client(cartd, "bob"), Client(cartd, "root", True), Client(cartd)


def stop(cartd: RunningCartd) -> None:
    assert cartd.terminate() == 0
    assert_no_unexpected_errors(cartd.log)


def all_of(answer: Answer, uid: str) -> tuple[object, ...]:
    """Return the response without date and id, and with ``uid`` replaced by a constant."""
    headers = {name: value.replace(uid, "UID") for name, value in answer.headers.items()}
    del headers["date"], headers["x-request-id"]
    return answer.status, headers, answer.body.replace(uid.encode(), b"UID")


REQUESTS = [("HEAD", ""), ("GET", ""), ("GET", "?filename=a.tar"), ("DELETE", "")]


@in_a_thread
def test_a_cart_is_visible_only_to_its_owner_and_admins(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path / "cartd", archive=url_of(archive), started=False) as cartd:
        ada, bob, root, anonymous = start(cartd)
        assert ada.post("a-ready", manifest_of(archive, "a-ready", 100)).status == 201
        lost = manifest([entry("lost", "a", b"")])
        assert ada.post("a-error", lost).status == 201
        archive.fault("slow", steps(Gate()), times=None)
        assert ada.post("a-stage", manifest([entry("slow", "a", b"")])).status == 201
        assert anonymous.post("a-none-", manifest_of(archive, "a-none-", 100)).status == 201
        ada.wait_until("a-ready", "ready")
        ada.wait_until("a-error", "error")
        anonymous.wait_until("a-none-", "ready")
        tag = ada.request("GET", "/a-ready?filename=a.tar").headers["etag"]

        for uid in ("a-ready", "a-error", "a-stage", "a-none-"):
            for method, query in REQUESTS:
                for headers in ({}, {"range": "bytes=0-9"}, {"if_none_match": tag}):
                    hidden = bob.request(method, f"/{uid}{query}", None, **headers)
                    never = bob.request(method, f"/a-never{query}", None, **headers)
                    assert hidden.status == 404
                    assert all_of(hidden, uid) == all_of(never, "a-never")
        assert ada.request("HEAD", "/a-none-").status == 404

        for sees_all in (root, anonymous):
            assert sees_all.status("a-ready") == "ready"
            assert sees_all.status("a-error") == "error"
            assert sees_all.status("a-stage") == "staging"
            assert sees_all.request("GET", "/a-none-").status == 200
            again = sees_all.request("GET", "/a-ready?filename=a.tar", if_none_match=tag)
            assert again.status == 304
        assert root.owners() == ["None", "ada", "ada", "ada"]
        stop(cartd)


@in_a_thread
def test_users_share_a_uid_and_an_admin_sees_the_newest_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path / "cartd", archive=url_of(archive), started=False) as cartd:
        ada, bob, root, _ = start(cartd)
        archive.put("of-ada", b"ada's")
        archive.put("of-bob", b"bob's")
        posts = {
            ada: manifest([entry("of-ada", "a", b"ada's")]),
            bob: manifest([entry("of-bob", "a", b"bob's")]),
        }
        for client, body in posts.items():
            assert client.post("mine", body).status == 201
            client.wait_until("mine", "ready")

        def content(client: Client) -> dict[str, bytes]:
            return unpacked(client.request("GET", "/mine").body)

        assert content(ada) == {"a": b"ada's"}
        assert content(bob) == content(root) == {"a": b"bob's"}
        # Each finds their own cart when they post again; what an admin posts is the admin's.
        for client, body in posts.items():
            assert client.post("mine", body).status == 201
        assert root.owners() == ["bob", "ada"]
        assert root.post("mine", posts[bob]).status == 201
        root.wait_until("mine", "ready")
        assert root.owners() == ["root", "bob", "ada"]
        # Deleted is what the client sees.
        assert bob.request("DELETE", "/mine").status == 200
        assert bob.request("DELETE", "/mine").status == 404
        assert bob.request("HEAD", "/mine").status == 404
        assert content(ada) == {"a": b"ada's"}
        assert root.request("DELETE", "/mine").status == 200
        assert ada.request("HEAD", "/mine").status == 404
        assert root.owners() == []
        stop(cartd)


@in_a_thread
def test_user_limits_count_only_carts_in_progress(archive: FaultyArchive, tmp_path: Path) -> None:
    ini, url = SHARES, url_of(archive)
    with running_cartd(tmp_path / "cartd", archive=url, ini=ini, started=False) as cartd:
        ada, bob, root, anonymous = start(cartd)
        gate = closed_gate(archive)
        large = {uid: manifest_of(archive, uid, 100, files=3) for uid in ("a", "b", "c", "d")}
        small = manifest_of(archive, "small", 100)
        assert ada.post("a", large["a"]).status == 201
        assert limit_of(ada.post("b", large["b"])) == "auth.max_files"
        assert ada.post("small", small).status == 201
        assert limit_of(ada.post("other", small)) == "auth.max_carts_staging"
        assert ada.request("HEAD", "/b").status == ada.request("HEAD", "/other").status == 404
        assert root.owners() == ["ada", "ada"]
        # The same again is no new cart, and neither others nor admins are held to ada's limits.
        assert ada.post("a", large["a"]).status == 201
        for client, uids in {bob: "c", root: "cd", anonymous: "cd"}.items():
            assert [client.post(uid, large[uid]).status for uid in uids] == [201] * len(uids)
        the_reactor().callFromThread(gate.open)
        ada.wait_until("a", "ready")
        assert ada.post("b", large["b"]).status == 201
        ada.wait_until("b", "ready")
        stop(cartd)


@in_a_thread
def test_one_cart_does_not_wait_behind_many_of_another_user(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    ini, url = "[archiveinterface]\nmax_connections = 4\n", url_of(archive)
    with running_cartd(tmp_path / "cartd", archive=url, ini=ini, started=False) as cartd:
        ada, bob, *_ = start(cartd)
        gate = closed_gate(archive)
        for number in range(CARTS):
            uid = f"ada-{number}"
            assert ada.post(uid, manifest_of(archive, uid, 400, FILES)).status == 201
        assert bob.post("bob", manifest_of(archive, "bob", 400, FILES)).status == 201
        the_reactor().callFromThread(gate.open)
        bob.wait_until("bob", "ready")
        for method in ("HEAD", "GET"):
            asked = [(seen.method, seen.target.split("-")[0]) for seen in archive.requests]
            first = asked.index((method, "/bob"))
            last = len(asked) - asked[::-1].index((method, "/bob"))
            # Every other request is bob's; round the carts, it would be one of twenty.
            assert last - first <= 4 * FILES
        stop(cartd)


def closed_gate(archive: FaultyArchive) -> Gate:
    """Before which all requests wait that come from now on."""
    gate = Gate()
    archive.fault("*", lambda request, file: [gate, *honest(request, file)], times=None)
    return gate


def limit_of(refused: Answer) -> object:
    assert refused.status == 429
    assert refused.headers["retry-after"] == "2"
    assert refused.json["limit"] in refused.json["message"]
    return refused.json["limit"]
