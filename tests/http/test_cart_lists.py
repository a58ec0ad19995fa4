"""Lists of carts, names and labels, from the real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cartd.http.carts import MAX_BODY, MAX_CARTS
from cartd.manifest import parse
from cartd.model import MAX_LABEL, MAX_LABELS, MAX_NAME
from cartd.store import sync
from tests.support.cart_site import CartSite, cart_site
from tests.support.databases import Postgres
from tests.support.running_cartd import Answer, RunningCartd, manifest, running_cartd

pytest_plugins = ("tests.support.database_fixtures",)
LISTED = "[page]\nlist = on\n"
USERS = "[auth]\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site"), ini=LISTED) as running:
        yield running


def uids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [cart["uid"] for cart in answer.json["carts"]]


def labels(cartd: RunningCartd, uid: str, body: object, **headers: str) -> Answer:
    return cartd.request("PUT", f"/-/carts/{uid}/labels", json.dumps(body).encode(), **headers)


def test_a_list_has_the_documents_of_carts(site: CartSite) -> None:
    site.stage("documented", {"a": b"data"}, labels=["documented"], name="My data")

    answer = site.cartd.get("/-/carts?label=documented")

    assert (answer.headers["content-type"], answer.headers["cache-control"]) == (
        "application/json",
        "no-store",
    )
    document = site.cartd.get("/-/carts/documented").json
    assert answer.json == {"carts": [document]}
    assert (document["name"], document["labels"]) == ("My data", ["documented"])


def test_pages_of_carts_follow_each_other_newest_first(site: CartSite) -> None:
    for number in range(5):
        site.stage(f"paged-{number}", {}, labels=["paged & more"])

    following = "/-/carts?label=paged%20%26%20more&status=ready&limit=2"
    found = []
    while following:
        page = site.cartd.get(following)
        found.append(uids(page))
        following = page.json.get("next", "")
        site.stage(f"newer-{len(found)}", {}, labels=["paged & more"])

    assert found == [["paged-4", "paged-3"], ["paged-2", "paged-1"], ["paged-0"]]


def test_deleted_carts_are_not_listed(site: CartSite) -> None:
    site.stage("stays", {}, labels=["going"])
    site.stage("goes", {}, labels=["going"])
    assert uids(site.cartd.get("/-/carts?label=going")) == ["goes", "stays"]
    site.cartd.delete("goes")
    assert uids(site.cartd.get("/-/carts?label=going")) == ["stays"]


@pytest.mark.parametrize("status", ["failed", "error"])
def test_carts_in_error_are_listed(site: CartSite, status: str) -> None:
    uid = f"broken-{status}"
    entry = {"id": "missing", "path": "a", "hashtype": "sha1", "hashsum": ""}
    site.cartd.post(uid, manifest([entry], labels=[uid]))
    site.cartd.wait_until(uid, "error")
    assert uids(site.cartd.get(f"/-/carts?status={status}&label={uid}")) == [uid]
    assert uids(site.cartd.get(f"/-/carts?status=ready&label={uid}")) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "status=deleted",
            "status: must be one of bundling, error, failed, partial, ready, staging, waiting",
        ),
        (f"limit={MAX_CARTS + 1}", f"limit: must be from 1 to {MAX_CARTS}"),
        ("after=0", f"after: must be from 1 to {2**63 - 1}"),
        ("owner=%00", "owner: must not contain NUL"),
        ("label=%FF", "label: must be UTF-8"),
    ],
)
def test_an_invalid_parameter_is_named(site: CartSite, query: str, message: str) -> None:
    answer = site.cartd.get(f"/-/carts?{query}")
    assert (answer.status, answer.json["detail"]) == (400, message)


def test_carts_are_not_listed_without_authentication(tmp_path: Path) -> None:
    with cart_site(tmp_path) as site:
        site.stage("secret", {})
        answer = site.cartd.get("/-/carts")
        assert answer.status == 403 and "[page] list" in answer.json["detail"]
        assert b"secret" not in answer.body.replace(b"may be a secret", b"")


@pytest.fixture(params=["sqlite", "postgresql"])
def users(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningCartd]:
    """A service with the users ada and bob, and the admin root, on either database."""
    url = ""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        server.execute("DROP DATABASE IF EXISTS cart_lists")
        server.execute("CREATE DATABASE cart_lists")
        sync(url := server.url("cart_lists"))
    with running_cartd(
        tmp_path / "cartd", archive="http://127.0.0.1:1/", database=url, started=False
    ) as cartd:
        if not url:
            sync(cartd.database)
        token = cartd.directory / "tokens"
        cartd.configure(f"{USERS}token_file = {token}\n")
        cartd.environment = {}
        added = cartd.run("cartd-cmd", "token", "add", "root", "--admin")
        cartd.start()
        cartd.environment = {"ROOT": added.stdout.split()[-1]}
        yield cartd


def test_users_list_their_own_carts_and_admins_all(users: RunningCartd) -> None:
    admin = {"authorization": f"Bearer {users.environment['ROOT']}"}
    for owner in ("ada", "bob"):
        for number in range(3):
            body = manifest([], labels=["both"])
            answer = users.request("POST", f"/{owner}{number}", body, x_user=owner)
            assert answer.status == 201, answer

    of_ada, of_bob = ["ada2", "ada1", "ada0"], ["bob2", "bob1", "bob0"]
    assert uids(users.get("/-/carts", x_user="ada")) == of_ada
    assert uids(users.get("/-/carts?owner=ada", x_user="ada")) == of_ada
    assert uids(users.get("/-/carts?label=both", x_user="bob")) == of_bob
    assert uids(users.get("/-/carts", x_user="eve")) == []
    assert uids(users.get("/-/carts", **admin)) == of_bob + of_ada
    assert uids(users.get("/-/carts?owner=ada&limit=2", **admin)) == of_ada[:2]
    following = users.get("/-/carts?owner=ada&limit=2", **admin).json["next"]
    assert uids(users.get(following, **admin)) == ["ada0"]
    # Another user's link leads to that user's own carts.
    refused = users.get(following, x_user="bob")
    assert (refused.status, refused.json["detail"]) == (
        403,
        "Only an admin may list the carts of other users",
    )


def test_another_users_labels_are_not_there(users: RunningCartd) -> None:
    users.request("POST", "/mine", manifest([], labels=["x"]), x_user="ada")
    assert labels(users, "mine", {"labels": ["y"]}, x_user="bob").status == 404
    assert labels(users, "mine", {"labels": ["é"]}, x_user="ada").json == {"labels": ["é"]}
    assert users.get("/-/carts/mine", x_user="ada").json["labels"] == ["é"]
    assert uids(users.get("/-/carts?label=%C3%A9", x_user="ada")) == ["mine"]


# --- names and labels


def test_labels_are_replaced(site: CartSite) -> None:
    site.stage("labelled", {}, labels=["one", "two", "one"])
    assert site.cartd.get("/-/carts/labelled").json["labels"] == ["one", "two"]

    assert labels(site.cartd, "labelled", {"labels": ["three", "three"], "x": 1}).status == 200
    assert site.cartd.get("/-/carts/labelled").json["labels"] == ["three"]
    assert labels(site.cartd, "labelled", {"labels": []}).json == {"labels": []}
    assert site.cartd.get("/-/carts/labelled").json["labels"] == []


def test_a_repost_keeps_name_and_labels(site: CartSite) -> None:
    body: Any = json.loads(site.manifest({"a": b""}))
    for name in ("first", "second"):
        site.cartd.post("again", json.dumps({**body, "name": name, "labels": [name]}).encode())
        site.cartd.wait_until("again", "ready")
    document = site.cartd.get("/-/carts/again").json
    assert (document["name"], document["labels"]) == ("first", ["first"])
    assert len(site.on_volume("again")) == 1


def test_labels_of_a_cart_that_is_not_there_are_not_set(site: CartSite) -> None:
    assert labels(site.cartd, "nobody", {"labels": []}).status == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "labels: is not JSON"),
        (b"[]", "labels: expected object, got array"),
        (b"{}", "labels: is missing"),
        (b'{"labels": "a"}', "labels: expected array, got str"),
        (b'{"labels": ["a", 1]}', "labels[1]: expected str, got int"),
        (b'{"labels": [""]}', "labels[0]: is empty"),
        (b'{"labels": ["\\u202e"]}', "labels[0]: contains a control character"),
        (b'{"labels": ["\xff"]}', "labels: is not UTF-8"),
        (b'{"labels": ["\\ud800"]}', "labels: is not JSON"),
        (b"[" * 10_000, "labels: "),
        (json.dumps({"labels": ["x" * (MAX_LABEL + 1)]}).encode(),
         f"labels[0]: is over {MAX_LABEL} characters"),
        (json.dumps({"labels": [*"abcdefghijklmnopqrstu"]}).encode(),
         f"labels: has more than {MAX_LABELS} entries"),
    ],
)  # fmt: skip
def test_invalid_labels_are_refused(site: CartSite, body: bytes, message: str) -> None:
    site.stage("kept", {}, labels=["as it was"])
    answer = site.cartd.request("PUT", "/-/carts/kept/labels", body)
    assert answer.status == 400 and answer.json["detail"].startswith(message), answer
    assert site.cartd.get("/-/carts/kept").json["labels"] == ["as it was"]


def test_the_longest_labels_fit_into_the_body(site: CartSite) -> None:
    site.stage("long", {})
    longest = [chr(0x1F600 + number) * MAX_LABEL for number in range(MAX_LABELS)]
    assert len(json.dumps({"labels": longest})) < MAX_BODY
    assert labels(site.cartd, "long", {"labels": longest}).json == {"labels": longest}
    answer = labels(site.cartd, "long", {"labels": [], "x": "y" * MAX_BODY})
    assert (answer.status, answer.json["detail"]) == (413, f"The body exceeds {MAX_BODY} bytes")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": ""}, "name: is empty"),
        ({"name": 1}, "name: expected str | null, got int"),
        ({"name": "x" * (MAX_NAME + 1)}, f"name: is over {MAX_NAME} characters"),
        ({"name": "a\nb"}, "name: contains a control character"),
        ({"labels": ["a", ""]}, "labels[1]: is empty"),
        ({"labels": None}, "labels: expected array, got null"),
    ],
)
def test_a_manifest_with_an_invalid_name_or_label_is_refused(
    site: CartSite, more: dict[str, object], message: str
) -> None:
    answer = site.cartd.post("refused", manifest([], **more))
    assert (answer.status, answer.json["message"]) == (400, message)
    assert site.cartd.get("/-/carts/refused").status == 404


def test_name_and_labels_do_not_change_the_fingerprint() -> None:
    named = parse(manifest([], name="n", labels=["l"]))
    assert named == parse(manifest([])) and (named.name, named.labels) == ("n", ("l",))
