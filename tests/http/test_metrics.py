"""The metrics of the real service: who may read them, where, and that events are counted."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from cartd.auth import TokenFile
from tests.support.cart_site import CartSite, cart_site
from tests.support.free_ports import free_port
from tests.support.metrics_table import definitions
from tests.support.running_cartd import (
    DEADLINE,
    RunningCartd,
    ask,
    entry,
    manifest,
    running_cartd,
    wait_for,
)

PATH = "/-/metrics"
NOWHERE = "http://127.0.0.1:9/"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        yield running


def samples(cartd: RunningCartd) -> Samples:
    text = cartd.get(PATH).body.decode()
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in prometheus(text)
        for one in family.samples
    }


class Changes:
    """By how much samples have grown since the object was created."""

    def __init__(self, cartd: RunningCartd) -> None:
        self._cartd = cartd
        self._before = samples(cartd)

    def of(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return samples(self._cartd).get(key, 0.0) - self._before.get(key, 0.0)


def test_every_metric_is_there_in_both_formats(site: CartSite) -> None:
    plain = site.cartd.get(PATH)
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert plain.headers["vary"] == "Accept"
    families = {family.name for family in prometheus(plain.body.decode())}
    assert {name.removesuffix("_total") for name, *_ in definitions()} <= families
    assert {"process_resident_memory_bytes", "process_open_fds"} <= families
    other = site.cartd.get(PATH, Accept="application/openmetrics-text; version=1.0.0")
    assert other.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    # This parser is strict.
    assert {family.name for family in openmetrics(other.body.decode())} == families


def test_staging_and_a_download_are_counted(site: CartSite) -> None:
    cartd, changes = site.cartd, Changes(site.cartd)
    listed = site.manifest({"a": b"x" * 100, "b": b"y" * 50})
    cartd.post("counted", listed)
    cartd.wait_until("counted", "ready")
    cartd.post("counted", listed)
    cartd.post("counted", b"{")
    cartd.download("counted")
    wait_for(lambda: changes.of("cartd_downloads_total", outcome="complete") == 1)
    assert cartd.get("/counted", Range="bytes=0-99").status == 206
    # The client may have all bytes a moment before the download has ended.
    wait_for(lambda: changes.of("cartd_downloads_total", outcome="range") == 1)
    for outcome in ("accepted", "repeated", "rejected"):
        assert changes.of("cartd_carts_posted_total", outcome=outcome) == 1
    assert changes.of("cartd_carts_finished_total", outcome="complete") == 1
    assert changes.of("cartd_cart_staging_seconds_count") == 1
    assert changes.of("cartd_files_staged_total", way="fetched") == 2
    assert changes.of("cartd_archive_requests_total", method="GET", code="200") == 2
    assert changes.of("cartd_archive_request_seconds_count", method="HEAD") == 2
    assert changes.of("cartd_archive_received_bytes_total") == 150
    assert changes.of("cartd_sent_bytes_total") == 10240 + 100
    assert changes.of("cartd_download_first_byte_seconds_count") == 2
    assert changes.of("cartd_http_requests_total", method="POST", code="201") == 2
    assert changes.of("cartd_rejections_total", code="400") == 1
    assert changes.of("cartd_store_seconds_count", kind="write") >= 3


def test_a_download_is_complete_if_the_client_has_all_bytes(site: CartSite) -> None:
    """It closes the connection at once, mostly before the service knows what was sent."""
    cartd = site.cartd
    cartd.post("whole", site.manifest({"a": b"x" * 3_000_000}))
    cartd.wait_until("whole", "ready")
    changes, count = Changes(cartd), 100
    for _ in range(count):
        cartd.download("whole")

    def ended() -> float:
        outcomes = ("complete", "disconnected", "failed")
        return sum(changes.of("cartd_downloads_total", outcome=outcome) for outcome in outcomes)

    wait_for(lambda: ended() == count)
    assert changes.of("cartd_downloads_total", outcome="complete") == count


def test_linked_and_failed_files_are_counted(site: CartSite) -> None:
    cartd = site.cartd
    listed = site.manifest({"a": b"linked"})
    cartd.post("first", listed)
    cartd.wait_until("first", "ready")
    changes = Changes(cartd)
    cartd.post("second", listed)
    cartd.wait_until("second", "ready")
    assert changes.of("cartd_files_staged_total", way="linked") == 1
    cartd.post(
        "bad", b'{"fileids": [{"id": "no-such", "path": "a", "hashtype": "md5", "hashsum": ""}]}'
    )
    cartd.wait_until("bad", "error")
    assert changes.of("cartd_file_failures_total", problem="file-not-in-archive") == 1
    assert changes.of("cartd_carts_finished_total", outcome="failed") == 1


def test_recall_from_tape_is_counted(tmp_path: Path) -> None:
    with cart_site(tmp_path, "--tape-delay=1") as site:
        changes = Changes(site.cartd)
        site.stage("u", {"a": b"x", "b": b"y"})
        assert changes.of("cartd_tape_recall_seconds_count") == 2
        assert changes.of("cartd_tape_recall_seconds_sum") >= 1
        assert changes.of("cartd_archive_request_seconds_count", method="POST") == 2


def test_eviction_is_counted(tmp_path: Path) -> None:
    ini = "[cartd]\nvolume_quota = 30000\n"
    with cart_site(tmp_path, ini=ini) as site:
        site.stage("old", {"a": bytes(20_000)})
        changes = Changes(site.cartd)
        site.stage("new", {"b": bytes(20_000)})
        assert changes.of("cartd_evictions_total") == 1
        assert changes.of("cartd_evicted_bytes_total") == 20_000
        assert changes.of("cartd_eviction_age_seconds_count") == 1
        assert samples(site.cartd)[("cartd_volume_quota_bytes", ())] == 30_000


def test_verified_files_are_counted(tmp_path: Path) -> None:
    with cart_site(tmp_path, ini="[cartd]\nscrub_interval = 0.1\n") as site:
        site.stage("u", {"a": b"aaaa", "b": b"bbbb"})
        intact = ("cartd_verified_files_total", (("result", "intact"),))
        wait_for(lambda: samples(site.cartd)[intact] >= 2)
        changes = Changes(site.cartd)
        [tree] = site.on_volume("u")
        (tree / "a").chmod(0o600)
        (tree / "a").write_bytes(b"bad!")
        wait_for(lambda: changes.of("cartd_verified_files_total", result="damaged") >= 1)
        # Only this file is fetched again.
        wait_for(lambda: changes.of("cartd_files_staged_total", way="fetched") == 1)


def test_unknown_method_is_no_label(site: CartSite) -> None:
    changes = Changes(site.cartd)
    assert site.cartd.request("BREW", "/pot").status == 405
    assert changes.of("cartd_http_requests_total", method="other", code="405") == 1


def test_download_in_progress_is_counted_before_it_ends(site: CartSite) -> None:
    site.stage("large", {"a": bytes(64 * 2**20)})
    changes = Changes(site.cartd)
    connection = HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
    connection.request("GET", "/large")
    assert connection.getresponse().status == 200
    wait_for(lambda: changes.of("cartd_sent_bytes_total") > 0)
    # Downloads of other tests may end only now.
    wait_for(lambda: samples(site.cartd)[("cartd_downloads_in_progress", ())] == 1)
    assert changes.of("cartd_connections") >= 1
    connection.close()
    wait_for(lambda: changes.of("cartd_downloads_total", outcome="disconnected") == 1)
    assert 0 < changes.of("cartd_sent_bytes_total") < 64 * 2**20


def test_open_event_streams_are_counted(tmp_path: Path) -> None:
    # An archive that does not exist: the cart stays unfinished, so its stream stays open.
    with running_cartd(tmp_path, archive=NOWHERE) as cartd:
        cartd.post("u", manifest([entry(1, "a", b"x")]))
        changes = Changes(cartd)
        connection = HTTPConnection("127.0.0.1", cartd.port, timeout=DEADLINE)
        connection.request("GET", "/-/carts/u/events")
        assert connection.getresponse().status == 200
        assert changes.of("cartd_event_streams") == 1
        connection.close()
        wait_for(lambda: changes.of("cartd_event_streams") == 0)


def test_outage_of_the_archive_is_seen_in_metrics_and_health(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=NOWHERE) as cartd:
        cartd.post("u", manifest([entry(1, "a", b"x")]))
        key = ("cartd_archive_unavailable", ())
        wait_for(lambda: samples(cartd)[key] == 1)
        changes = Changes(cartd)
        wait_for(lambda: changes.of("cartd_archive_unavailable_seconds_total") > 0)
        assert samples(cartd)[("cartd_check_failing", (("check", "archive"),))] == 1
        ready = cartd.get("/-/ready")
        assert (ready.status, ready.json["status"]) == (200, "warn")
        assert ready.json["reasons"] == {"archive": "unavailable"}
        health = cartd.get("/-/health").json
        assert "Carts wait for the archive" in health["checks"]["archive"]["detail"]
        labels = (("code", "none"), ("method", "HEAD"))
        assert samples(cartd)[("cartd_archive_requests_total", labels)] > 0


def test_scrapes_are_not_logged_but_rejected_ones_are(site: CartSite) -> None:
    assert site.cartd.get(PATH).status == 200
    assert PATH not in site.cartd.log
    assert site.cartd.get(PATH, Forwarded="for=192.0.2.1").status == 403
    wait_for(lambda: PATH in site.cartd.log)
    assert " 403 " in site.cartd.log


def test_no_name_of_a_cart_a_file_or_a_user_is_in_the_metrics(site: CartSite) -> None:
    site.stage("secret-uid", {"secret-path": b"x"}, name="secret-name", labels=["secret-label"])
    assert b"secret" not in site.cartd.get(PATH).body


def test_with_authentication_metrics_are_for_admins(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens")
    admin, user = file.add("alice", admin=True), file.add("bob", admin=False)
    ini = f"[auth]\ntoken_file = {file.path}\n"
    with running_cartd(tmp_path / "cartd", archive=NOWHERE, ini=ini) as cartd:
        assert cartd.get(PATH).status == 401
        assert cartd.get(PATH, Authorization=f"Bearer {user}").status == 403
        assert cartd.get(PATH, Authorization=f"Bearer {admin}").status == 200


def test_metrics_may_be_off(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=NOWHERE, ini="[metrics]\nenabled = off\n") as cartd:
        answer = cartd.get(PATH)
        assert answer.status == 404 and "[metrics]" in answer.json["detail"]
        assert cartd.get("/-/healthy").status == 200


def test_own_endpoint_serves_metrics_and_health_only(tmp_path: Path) -> None:
    port = free_port()
    ini = (
        f"[metrics]\nendpoint = tcp:{port}:interface=127.0.0.1\n"
        f"[auth]\ntoken_file = {tmp_path / 'tokens'}\n"
    )
    TokenFile(tmp_path / "tokens").add("alice", admin=True)
    with running_cartd(tmp_path / "cartd", archive=NOWHERE, ini=ini) as cartd:

        def there(path: str, **headers: str) -> Any:
            return ask(port, "GET", path, None, **headers)

        assert there(PATH, Host="cartd.example.org").status == 200
        assert there(PATH, X_Forwarded_For="192.0.2.1").status == 200
        wait_for(lambda: there("/-/ready").status == 200)
        assert there("/-/healthy").status == 200
        for path in ("/", "/u", "/-/carts/u", "/-/openapi.json"):
            assert there(path).status == 404
        assert there("/-/health", X_Forwarded_For="192.0.2.1").status == 403
        assert ask(port, "POST", "/u", b"{}").status == 404
        assert cartd.get("/-/ready").status == 200
        assert cartd.terminate() == 0
        assert "Traceback" not in cartd.log
