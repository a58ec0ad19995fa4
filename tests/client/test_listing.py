"""Lists of files and carts: continued when they break off, and of a hostile service."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from cartd_client import Client, Manifest, listing, transport
from cartd_client.errors import InvalidResponse, NotSupported, ServiceUnavailable
from tests.support.cart_site import CartSite
from tests.support.scripted_server import ScriptedServer, answer

Scripted = Callable[..., ScriptedServer]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_sleep", lambda seconds: None)


def line(position: int, **more: object) -> bytes:
    return json.dumps({"position": position, "id": "1", "path": "a", **more}).encode() + b"\n"


def lines(text: bytes, length: int | None = None) -> bytes:
    return answer(200, text, length=length, content_type="application/x-ndjson")


def test_a_list_that_breaks_off_is_continued(scripted: Scripted) -> None:
    also = {"hashtype": "sha256", "hashsum": "AB"}
    server = scripted(
        lines(line(0) + line(4, also=also) + b'{"posi', 1000),
        answer(503, retry_after="0"),
        lines(line(5) + b'{"position": 6'),
        lines(b"", 5),
        lines(line(6)),
    )
    files = list(Client(server.url).files("u", failed=True))
    assert [file.position for file in files] == [0, 4, 5, 6]
    assert (files[1].also_hash_type, files[1].also_hash_sum) == ("sha256", "ab")
    path = "GET /-/carts/u/files?status=failed"
    after = ["", "&after=4", "&after=4", "&after=5", "&after=5"]
    assert server.lines == [path + query for query in after]


@pytest.mark.parametrize(
    "text",
    [
        line(0) + line(0),
        line(1) + line(0),
        b"[]\n",
        b'{"position": "0", "path": "a"}\n',
        b'{"position": 0, "path": ""}\n',
        b'{"position": 0, "path": 1}\n',
        b'{"position": -1, "path": "a"}\n',
        b"{\n",
        b" " * (listing.MAX_LINE + 70_000),
    ],
    ids=["twice", "order", "list", "text", "empty", "number", "negative", "JSON", "endless"],
)
def test_a_wrong_list_of_files_is_an_error(scripted: Scripted, text: bytes) -> None:
    with pytest.raises(InvalidResponse):
        list(Client(scripted(lines(text)).url).files("u"))


def test_a_service_without_lists_is_said(scripted: Scripted) -> None:
    with pytest.raises(NotSupported):
        list(Client(scripted(answer(200, b"Not a list")).url).files("u"))
    with pytest.raises(ServiceUnavailable):
        list(Client(scripted(lines(b"", 99)).url, retries=1).files("u"))


def test_carts_are_listed_page_by_page(
    site: CartSite, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Manifest(b'{"fileids": [], "labels": ["a b&c"]}')
    uids = [client.submit(empty, f"listed-{number}") for number in range(3)]
    client.submit(Manifest(b'{"fileids": []}'), "other")
    monkeypatch.setattr(listing, "_PAGE", "1")
    assert [cart.uid for cart in client.carts(label="a b&c")] == uids[::-1]
    assert list(client.carts(status="error")) == []


@pytest.mark.parametrize(
    "page",
    [
        {"carts": [], "next": "http://elsewhere/?after=7"},
        {"carts": [], "next": "/-/carts"},
        {"carts": [], "next": 7},
        {"carts": {}},
        {"carts": [{"uid": "u"}]},
        [],
    ],
)
def test_a_wrong_list_of_carts_is_an_error(scripted: Scripted, page: object) -> None:
    server = scripted(answer(200, json.dumps(page).encode()))
    with pytest.raises(InvalidResponse):
        list(Client(server.url).carts())
    assert len(server.requests) <= 2
