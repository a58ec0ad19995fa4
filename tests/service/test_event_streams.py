"""Event streams of the running service, read by a real client and through real proxies."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cartd.status.events import SLICE, parse_event_id
from tests.support.cart_site import CartSite, cart_site
from tests.support.databases import Postgres
from tests.support.event_client import EventClient, following
from tests.support.free_ports import free_port
from tests.support.gateways import running_haproxy, running_nginx
from tests.support.running_cartd import running_cartd, wait_for
from tests.support.served_directory import served_directory
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader
from tests.support.wire import wire

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {"a/one": b"first", "two": b"second" * 1000}
NEVER = "--tape-delay=1e8"
SOON = "--tape-delay=2"


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site whose files are never recalled from tape."""
    with cart_site(tmp_path_factory.mktemp("tapes"), NEVER) as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site whose files are recalled in 2 s: longer than connections may be silent otherwise."""
    ini = "[server]\nstall_timeout = 0.2\nidle_timeout = 0.2\nkeepalive_timeout = 1\n"
    ini += "[archiveinterface]\nmax_attempts = 1\n"
    with cart_site(tmp_path_factory.mktemp("site"), SOON, ini=ini) as running:
        yield running


def post(site: CartSite, uid: str) -> None:
    assert site.cartd.post(uid, site.manifest(FILES)).status == 201


def test_a_stream_shows_a_cart_until_it_is_ready(site: CartSite) -> None:
    post(site, "shown")
    with following(site.port, "shown") as client:
        assert client.status == 200
        assert {name: client.headers.get(name) for name in (
            "content-type", "cache-control", "x-accel-buffering", "content-length")} == {
            "content-type": "text/event-stream", "cache-control": "no-store",
            "x-accel-buffering": "no", "content-length": None}  # fmt: skip
        events = client.events()
    assert client.parser.retry == "3000"
    assert {event.name for event in events[:-1]} == {"status"} and events[-1].name == "end"
    ids = [parse_event_id(event.id) for event in events]
    assert len({one.cart_id for one in ids if one is not None}) == 1
    versions = [one.version for one in ids if one is not None]
    assert versions == sorted(set(versions)) == [event.json["version"] for event in events]
    assert events[0].json["status"] == "staging"
    assert events[-1].json == site.cartd.get("/-/carts/shown").json
    assert events[-1].json["outcome"] == "complete"


def test_a_client_that_has_the_end_is_told_not_to_reconnect(site: CartSite) -> None:
    site.stage("over", FILES)
    with following(site.port, "over") as client:
        [end] = client.events()
    assert end.name == "end"
    with wire(site.port) as connection:
        connection.get("/-/carts/over/events", f"Last-Event-ID: {end.id}")
        again = connection.answer()
        assert again.status == 204
        assert not {"content-length", "content-type"} & again.headers.keys()
        # The connection can be used for another request.
        connection.get("/-/carts/over")
        assert connection.answer().json == end.json
    with following(site.port, "over", last_event_id="0-0") as client:
        assert client.events() == [end]


def test_a_client_that_reconnects_continues_with_the_present_state(tapes: CartSite) -> None:
    post(tapes, "again")
    with following(tapes.port, "again") as client:
        first = client.next()
    assert first is not None
    with following(tapes.port, "again", last_event_id=first.id) as client:
        second = client.next()
    assert second is not None and second.name == "status"
    ids = parse_event_id(first.id), parse_event_id(second.id)
    assert ids[0] is not None and ids[1] is not None and ids[0] <= ids[1]


def test_a_file_that_fails_is_an_event(site: CartSite) -> None:
    body = site.manifest(FILES)
    for listed in json.loads(body)["fileids"]:
        site.archive.put(listed["id"], b"something else")
    assert site.cartd.post("failing", body).status == 201
    with following(site.port, "failing") as client:
        *_, failure, end = client.events()
    assert (failure.name, end.name) == ("file", "end")
    assert failure.json["path"] in FILES and failure.json["error"]
    assert end.json["status"] == "error" and end.json["files"]["failed"] > 0


def test_a_deleted_cart_ends_its_streams(tapes: CartSite) -> None:
    post(tapes, "deleted")
    with following(tapes.port, "deleted") as client:
        assert client.next() is not None
        assert tapes.cartd.delete("deleted").status == 200
        assert client.events()[-1].name == "end"
    with following(tapes.port, "deleted") as client:
        assert client.status == 404


def test_a_head_has_the_headers_and_opens_no_stream(tapes: CartSite) -> None:
    post(tapes, "head")
    head = tapes.cartd.request("HEAD", "/-/carts/head/events")
    assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
    assert tapes.cartd.request("HEAD", "/-/carts/none/events").status == 404


def test_a_client_of_http_1_0_reads_to_the_end_of_the_connection(site: CartSite) -> None:
    site.stage("old", FILES)
    with wire(site.port) as connection:
        connection.send(b"GET /-/carts/old/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert connection.head().status == 200
        assert b"event: end\n" in connection.rest()


def test_streams_over_the_limit_are_rejected_until_a_client_leaves(tmp_path: Path) -> None:
    ini = "[server]\nmax_event_streams = 2\n"
    with cart_site(tmp_path, NEVER, ini=ini) as site:
        post(site, "u")
        with following(site.port, "u") as first:
            assert first.next() is not None
            with following(site.port, "u") as second:
                assert second.next() is not None
                over = site.cartd.get("/-/carts/u/events")
                limit = "server.max_event_streams"
                assert (over.status, over.json["limit"]) == (503, limit)
                assert over.headers["retry-after"]
                assert b"\ncartd_event_streams 2.0\n" in site.cartd.get("/-/metrics").body
            wait_for(lambda: opens(site, "u"))
            assert first.status == 200


def opens(site: CartSite, uid: str) -> bool:
    with following(site.port, uid) as client:
        return client.status == 200


def test_a_stop_ends_streams_while_a_download_may_continue(tmp_path: Path) -> None:
    one_a_second = ("--tape-delay=0", "--tape-rate=1")
    with cart_site(tmp_path, *one_a_second, ini="[server]\nshutdown_grace = 60\n") as site:
        cartd = site.cartd
        site.stage("large", {"large": bytes(TOO_MUCH_FOR_SOCKETS)})
        cartd.post("slow", site.manifest({f"{n}": b"%d" % n for n in range(1000)}))
        with slow_reader(cartd, "large") as download, following(site.port, "slow") as client:
            assert client.next() is not None
            cartd.send(signal.SIGTERM)
            assert {event.name for event in client.events()} <= {"status"}
            assert cartd.process is not None and cartd.process.poll() is None
            assert len(download.rest()) > TOO_MUCH_FOR_SOCKETS
        assert cartd.ended() == 0
        cartd.start()


def test_many_streams_of_one_cart_all_see_its_end(tmp_path: Path) -> None:
    number = 20 * SLICE
    with cart_site(tmp_path, SOON) as site:
        post(site, "popular")
        with connections(site, "popular", number) as clients:
            assert all(client.events()[-1].name == "end" for client in clients)


@contextmanager
def connections(site: CartSite, uid: str, number: int) -> Iterator[list[EventClient]]:
    opened: list[AbstractContextManager[EventClient]] = []
    try:
        clients = []
        for _ in range(number):
            opened.append(following(site.port, uid))
            clients.append(opened[-1].__enter__())
        yield clients
    finally:
        for one in opened:
            one.__exit__(None, None, None)


# --- proxies in between, with default settings


@contextmanager
def behind_nginx(directory: Path, port: int) -> Iterator[int]:
    with running_nginx(directory, f"location / {{ proxy_pass http://127.0.0.1:{port}; }}") as found:
        yield found


@contextmanager
def behind_haproxy(directory: Path, port: int) -> Iterator[int]:
    front = free_port()
    with running_haproxy(directory, f"  server s 127.0.0.1:{port}", front):
        wait_for(lambda: listens(front))
        yield front


def listens(port: int) -> bool:
    with socket.socket() as connecting:
        return connecting.connect_ex(("127.0.0.1", port)) == 0


PROXIES: list[Callable[[Path, int], AbstractContextManager[int]]] = [behind_nginx, behind_haproxy]


@pytest.mark.parametrize("behind", PROXIES)
def test_a_proxy_passes_each_event_at_once(
    tapes: CartSite, tmp_path: Path, behind: Callable[[Path, int], AbstractContextManager[int]]
) -> None:
    uid = behind.__name__.replace("_", "-")
    post(tapes, uid)
    with behind(tmp_path, tapes.port) as port, following(port, uid) as client:
        # A proxy that buffers would pass it only at the end.
        first = client.next()
        assert first is not None and first.name == "status"
        assert tapes.cartd.delete(uid).status == 200
        assert client.events()[-1].name == "end"


@pytest.mark.parametrize("behind", PROXIES)
def test_a_client_that_leaves_a_proxy_leaves_the_service(
    tmp_path: Path, behind: Callable[[Path, int], AbstractContextManager[int]]
) -> None:
    (tmp_path / "proxy").mkdir()
    ini = "[server]\nmax_event_streams = 1\n"
    with (
        cart_site(tmp_path, NEVER, ini=ini) as site,
        behind(tmp_path / "proxy", site.port) as port,
    ):
        post(site, "u")
        with following(port, "u") as client:
            assert client.next() is not None
            assert not opens(site, "u")
        wait_for(lambda: opens(site, "u"))


# --- two processes on one store


def test_a_stream_of_one_process_shows_what_another_stages(database: str, tmp_path: Path) -> None:
    with (
        served_directory(tmp_path, SOON) as archive,
        running_cartd(tmp_path / "first", archive=archive.url, database=database) as first,
        running_cartd(
            tmp_path / "second",
            archive=archive.url,
            database=database,
            VOLUME_PATH=str(first.volume),
        ) as second,
    ):
        site = CartSite(tmp_path, first, archive)
        post(site, "shared")
        with following(second.port, "shared") as other, following(first.port, "shared") as own:
            ends = [client.events()[-1] for client in (other, own)]
        assert ends[0] == ends[1] and ends[0].json["status"] == "ready"
        for cartd in (first, second):
            with following(cartd.port, "shared", last_event_id=ends[0].id) as client:
                assert client.status == 204
            assert cartd.terminate() == 0


def test_a_stream_outlives_an_outage_of_the_database(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    url = own_postgres.create()
    with (
        served_directory(tmp_path, NEVER) as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, database=url) as cartd,
    ):
        post(CartSite(tmp_path, cartd, archive), "u")
        with following(cartd.port, "u") as client:
            assert client.next() is not None
            own_postgres.stop()
            while (comment := client.next_comment()) == "":
                pass  # sent before the database was gone
            assert comment == "the database is unavailable"
            own_postgres.start()
            wait_for(lambda: cartd.delete("u").status == 200)
            assert client.events()[-1].name == "end"
        assert cartd.terminate() == 0
