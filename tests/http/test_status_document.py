"""The status document over HTTP: ETag, long polling, and the headers that lead to it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

import msgspec
import pytest

from cartd.http.api import preferred_wait
from tests.status.test_description import Strict, section
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer, entry, manifest, wait_for
from tests.support.wire import Wire, wire

FILES = {"a/one": b"first", "b": b"second"}
NEVER = "--tape-delay=1e8"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("ready", FILES)
        yield running


@pytest.fixture
def tapes(tmp_path: Path) -> Iterator[CartSite]:
    """A site whose files are never recalled from tape, so that carts do not change."""
    with cart_site(tmp_path, NEVER) as running:
        running.cartd.post("u", running.manifest(FILES))
        wait_for(lambda: is_settled(status(running, "u").json))
        yield running


def is_settled(document: Any) -> bool:
    """Whether all that is left is on tape, and the cached queue knows that."""
    return document["phase"] == "recalling" and "queue" not in document


def status(site: CartSite, uid: str, **headers: str) -> Answer:
    return site.cartd.get(f"/-/carts/{uid}", **headers)


# --- ETag ---------------------------------------------------------------------------------------


def test_etag_is_the_version_and_gives_304(site: CartSite) -> None:
    answer = status(site, "ready")
    etag = answer.headers["etag"]
    assert re.fullmatch(rf'"{answer.json["version"]}-[0-9a-f]{{24}}"', etag)
    assert answer.headers["cache-control"] == "no-store"
    again = status(site, "ready", if_none_match=etag)
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert status(site, "ready", if_none_match='"0-0"').status == 200


def test_the_document_of_a_ready_cart_names_the_tar(site: CartSite) -> None:
    document = status(site, "ready").json
    tar = site.cartd.request("GET", document["download"]["url"])
    assert tar.headers["etag"] == document["download"]["etag"]
    assert len(tar.body) == document["download"]["length"]
    assert document["message"] == "The cart is ready for download."


def test_the_commands_of_the_reference_print_status_documents(site: CartSite) -> None:
    commands = re.findall(r"```sh\n(curl .*?)```", section(), re.S)
    assert len(commands) == 2
    for command in commands:
        adapted = command.replace("127.0.0.1:8081", f"127.0.0.1:{site.port}")
        ran = subprocess.run(
            ["sh", "-c", adapted.replace("my-cart", "ready").replace("curl", "curl -s", 1)],
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert msgspec.json.decode(ran.stdout, type=Strict).uid == "ready"


# --- Prefer: wait -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("wait=30", 30),
        ("respond-async, WAIT = 10", 10),
        ('wait="5"', 5),
        ("wait=7; x=y", 7),
        ("wait=1, wait=2", 1),
        ("wait", 0),
        ("wait=", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=" + "9" * 100, 0),
        ("wait=٣", 0),
        ("waiting=3", 0),
        (",;=", 0),
    ],
)
def test_wait_is_read_from_prefer(prefer: str | None, seconds: int) -> None:
    assert preferred_wait(prefer) == seconds


@contextmanager
def held_request(site: CartSite, uid: str) -> Iterator[Wire]:
    """A request that waits for a change of the cart."""
    etag = status(site, uid).headers["etag"]
    with wire(site.port) as connection:
        connection.get(f"/-/carts/{uid}", "Prefer: wait=60", f"If-None-Match: {etag}")
        for _ in range(3):  # the service accepts and reads connections in order
            status(site, uid)
        assert not select([connection.socket], [], [], 0)[0]
        yield connection


def test_the_response_comes_when_the_cart_changes(tapes: CartSite) -> None:
    with held_request(tapes, "u") as connection:
        tapes.cartd.delete("u")
        assert connection.answer().status == 404


def test_the_response_is_304_after_the_time(tapes: CartSite) -> None:
    etag = status(tapes, "u").headers["etag"]
    answer = status(tapes, "u", prefer="wait=1", if_none_match=etag)
    assert (answer.status, answer.headers["preference-applied"]) == (304, "wait=1")


def test_another_version_is_sent_at_once(tapes: CartSite) -> None:
    answer = status(tapes, "u", prefer="wait=60", if_none_match='"0-0"')
    assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=60")


def test_a_finished_cart_is_sent_at_once_to_whoever_does_not_know_it(site: CartSite) -> None:
    answer = status(site, "ready", prefer="wait=3600")
    assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=60")


def test_a_stop_ends_the_waits(tapes: CartSite) -> None:
    with held_request(tapes, "u") as connection:
        assert tapes.cartd.terminate() == 0
        answer = connection.answer()
    assert (answer.status, answer.headers["preference-applied"]) == (304, "wait=60")
    tapes.cartd.start()


def test_a_client_that_leaves_ends_its_wait(tapes: CartSite) -> None:
    with held_request(tapes, "u"):
        pass
    # The fixture checks that the service stops, and its log.
    assert status(tapes, "u").status == 200


# --- headers of Pacifica's requests -------------------------------------------------------------


def test_a_post_tells_where_the_cart_and_its_status_are(site: CartSite) -> None:
    answer = site.cartd.post("posted", site.manifest(FILES))
    assert answer.status == 201
    assert answer.headers["location"] == "/posted"
    assert answer.headers["link"] == '</-/carts/posted>; rel="monitor"'
    assert status(site, "posted").status == 200


def test_a_cart_that_is_not_ready_tells_where_its_status_is(tapes: CartSite) -> None:
    answer = tapes.cartd.get("/u")
    assert (answer.status, answer.headers["retry-after"]) == (202, "2")
    assert answer.headers["link"] == '</-/carts/u>; rel="monitor"'
    resumed = tapes.cartd.get("/u", range="bytes=5-")
    assert (resumed.status, resumed.headers["retry-after"]) == (503, "2")


def test_other_responses_have_no_link(site: CartSite) -> None:
    failing = manifest([entry("no-such-id", "gone", b"")])
    site.cartd.post("failing", failing)
    site.cartd.wait_until("failing", "error")
    for path in ("/ready", "/failing", "/absent"):
        assert "link" not in site.cartd.get(path).headers


def test_urls_are_absolute_with_a_public_url(tmp_path: Path) -> None:
    ini = "[server]\npublic_url = https://carts.example.org/base\n"
    with cart_site(tmp_path, ini=ini) as running:
        answer = running.cartd.post("u", running.manifest(FILES))
        base = "https://carts.example.org/base"
        assert answer.headers["location"] == f"{base}/u"
        assert answer.headers["link"] == f'<{base}/-/carts/u>; rel="monitor"'
        assert status(running, "u").json["links"]["self"] == f"{base}/-/carts/u"
