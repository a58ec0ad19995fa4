"""The routes for monitoring, on the real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.web.http_headers import Headers

from cartd.auth import TokenFile
from cartd.http.monitoring import may_administer
from cartd.model import User
from tests.support.cart_site import CartSite, cart_site
from tests.support.gateways import haproxy_state, running_haproxy
from tests.support.running_cartd import RunningCartd, running_cartd, wait_for

PROBES = ("/-/healthy", "/-/ready")
METHODS = ("GET", "HEAD", "OPTIONS")
DOCS = (Path(__file__).parents[2] / "docs/monitoring.md").read_text("utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        wait_until_ready(running.cartd)
        yield running


def wait_until_ready(cartd: RunningCartd) -> None:
    wait_for(lambda: cartd.get("/-/ready").status == 200)


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("method", METHODS)
def test_probe_is_answered_and_not_logged(site: CartSite, method: str, path: str) -> None:
    logged = site.cartd.log.count("GET /-/openapi.json")
    answer = site.cartd.request(method, path)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.body == (b"" if method == "HEAD" else b'{"status":"pass","reasons":{}}')
    assert site.cartd.get("/-/openapi.json").status == 200  # logged, so the log is written
    wait_for(lambda: site.cartd.log.count("GET /-/openapi.json") > logged)
    assert f"{method} {path} " not in site.cartd.log


def test_other_methods_of_a_probe_are_rejected(site: CartSite) -> None:
    answer = site.cartd.post("-/ready", b"{}")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_health_of_a_healthy_service(site: CartSite) -> None:
    answer = site.cartd.get("/-/health")
    assert answer.status == 200
    checks = answer.json["checks"]
    assert {name: check["status"] for name, check in checks.items()} == dict.fromkeys(
        ("service", "recovery", "volume", "database", "archive", "space"), "pass"
    )
    assert all(check["since"].endswith("Z") for check in checks.values())


def test_health_is_not_for_clients_of_a_proxy(site: CartSite) -> None:
    answer = site.cartd.get("/-/health", X_Forwarded_For="192.0.2.1")
    assert answer.status == 403 and b"checks" not in answer.body


def test_unmounted_volume_is_not_ready_until_it_is_back(tmp_path: Path) -> None:
    with cart_site(tmp_path) as site:
        wait_until_ready(site.cartd)
        volume = site.cartd.volume
        volume.rename(volume.with_name("elsewhere"))
        volume.mkdir()
        wait_for(lambda: site.cartd.get("/-/ready").status == 503)
        answer = site.cartd.get("/-/ready")
        assert answer.json == {"status": "fail", "reasons": {"volume": "not mounted"}}
        assert site.cartd.request("OPTIONS", "/-/ready").status == 503
        assert site.cartd.get("/-/healthy").status == 200
        assert site.cartd.get("/-/health").json["checks"]["volume"]["status"] == "fail"
        volume.rmdir()
        volume.with_name("elsewhere").rename(volume)
        wait_until_ready(site.cartd)
        assert "The service is not ready: volume: not mounted" in site.cartd.log


def test_haproxy_follows_the_readiness(tmp_path: Path) -> None:
    with cart_site(tmp_path) as site:
        shown = DOCS.split("backend cartd\n")[1].split("```")[0]
        assert "192.0.2.1:8081 check inter 5s" in shown
        backend = shown.replace("192.0.2.1:8081", f"127.0.0.1:{site.port}")
        # A slow machine is not down.
        backend = f"  timeout check 60s\n{backend.replace('inter 5s', 'inter 100ms')}"
        with running_haproxy(tmp_path, backend) as control:

            def is_up(up: bool) -> bool:
                state = haproxy_state(control)["one"]
                wanted = ("UP", "200") if up else ("DOWN", "503")
                return (state["status"], state["check_code"]) == wanted

            wait_until_ready(site.cartd)
            wait_for(lambda: is_up(True))
            volume = site.cartd.volume
            volume.rename(volume.with_name("elsewhere"))
            volume.mkdir()
            wait_for(lambda: is_up(False))
            volume.rmdir()
            volume.with_name("elsewhere").rename(volume)
            wait_for(lambda: is_up(True))
            assert "/-/ready" not in site.cartd.log


def test_with_authentication_probes_are_public_and_health_is_for_admins(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens")
    admin, user = file.add("alice", admin=True), file.add("bob", admin=False)
    ini = f"[auth]\ntoken_file = {file.path}\n"
    with running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:9/", ini=ini) as cartd:
        wait_until_ready(cartd)
        for path in PROBES:
            for method in METHODS:
                assert cartd.request(method, path).status == 200
        assert cartd.get("/-/health").status == 401
        assert cartd.get("/-/health", Authorization=f"Bearer {user}").status == 403
        # An admin's token is enough, from anywhere.
        sent = {"Authorization": f"Bearer {admin}", "X_Forwarded_For": "192.0.2.1"}
        assert cartd.get("/-/health", **sent).status == 200


def asking(peer: IAddress, user: User | None = None, **headers: str) -> Any:
    given = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
    return SimpleNamespace(
        authenticated_user=user, requestHeaders=given, getClientAddress=lambda: peer
    )


LOCAL = IPv4Address("TCP", "127.0.0.1", 1)
FOREIGN = IPv4Address("TCP", "192.0.2.1", 1)


@pytest.mark.parametrize(
    ("request_", "may"),
    [
        (asking(LOCAL), True),
        (asking(IPv4Address("TCP", "127.9.9.9", 1)), True),
        (asking(IPv6Address("TCP", "::1", 1)), True),
        (asking(IPv6Address("TCP", "::ffff:127.0.0.1", 1)), True),
        (asking(UNIXAddress(b"/run/cartd.sock")), True),
        (asking(FOREIGN), False),
        (asking(IPv6Address("TCP", "2001:db8::1", 1)), False),
        (asking(IPv4Address("TCP", "any text of a proxy", 1)), False),
        (asking(LOCAL, X_Forwarded_For="127.0.0.1"), False),
        (asking(LOCAL, Forwarded="for=127.0.0.1"), False),
        (asking(LOCAL, X_Real_IP="127.0.0.1"), False),
        (asking(LOCAL, Via="1.1 proxy"), False),
        (asking(UNIXAddress(b""), Via="1.1 proxy"), False),
        (asking(LOCAL, User("bob")), False),
        (asking(FOREIGN, User("alice", admin=True)), True),
        (asking(FOREIGN, User("alice", admin=True), Via="1.1 proxy"), True),
    ],
)
def test_who_may_administer(request_: Any, may: bool) -> None:
    assert may_administer(request_) is may
