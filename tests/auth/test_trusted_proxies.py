"""The proxy header: the peers from which it is accepted, and its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from cartd.auth.authenticator import TrustedProxies
from cartd.config import load
from cartd.errors import ConfigError, Unauthenticated
from cartd.model import User
from tests.support.auth_harness import AuthHarness, request

PROXY = "proxy_header = X-User\ntrusted_proxies = 10.1.0.0/16, 192.0.2.7 2001:db8::/32 unix\n"


@pytest.fixture
def harness(tmp_path: Path) -> AuthHarness:
    return AuthHarness(tmp_path, PROXY + "token_file = {file}")


@pytest.mark.parametrize(
    "peer", ["10.1.0.0", "10.1.255.255", "192.0.2.7", "2001:db8::9", "::ffff:10.1.2.3", "unix"]
)
def test_a_trusted_peer_names_the_user(harness: AuthHarness, peer: str) -> None:
    named = request(peer, x_user="dora@example.org")
    assert harness.authenticate(named) == User("dora@example.org")


@pytest.mark.parametrize(
    "peer", ["10.2.0.0", "192.0.2.6", "2001:db9::", "127.0.0.1", "::ffff:10.2.0.0", "fe80::1%eth0"]
)
def test_the_header_of_an_untrusted_peer_is_ignored(harness: AuthHarness, peer: str) -> None:
    trusted = request("10.1.0.0", x_user="alice")
    assert harness.authenticate(trusted) == User("alice", admin=True)
    forged = request(peer, x_user="alice")
    assert isinstance(harness.authenticate(forged), Unauthenticated)
    both = request(peer, x_user="alice", authorization=f"Bearer {harness.tokens['bob']}")
    assert harness.authenticate(both) == User("bob")


@pytest.mark.parametrize("peer", ["unix", "10.1.0.0"])
def test_a_unix_socket_is_trusted_only_if_configured(tmp_path: Path, peer: str) -> None:
    other = "127.0.0.1" if peer == "unix" else "unix"
    harness = AuthHarness(tmp_path, f"proxy_header = X-User\ntrusted_proxies = {other}")
    assert isinstance(harness.authenticate(request(peer, x_user="alice")), Unauthenticated)


@pytest.mark.parametrize(
    "values", ["", "dora smith", "a,b", ".a", ["mallory", "dora"], "d\u00f6ra", "x" * 256]
)
def test_a_header_without_exactly_one_name_is_refused(
    harness: AuthHarness, values: str | list[str]
) -> None:
    refused = harness.authenticate(request("unix", x_user=values))
    assert isinstance(refused, Unauthenticated)
    assert str(refused).startswith("The proxy sent no valid user name: '")


def test_a_token_spelling_a_known_name_does_not_authenticate(harness: AuthHarness) -> None:
    harness.authenticate(request("unix", x_user="alice"))
    assert isinstance(harness.authenticate(request("unix", authorization="alice")), Unauthenticated)


def test_a_client_without_the_header_may_use_a_token(harness: AuthHarness) -> None:
    bearer = f"Bearer {harness.tokens['bob']}"
    assert harness.authenticate(request("unix", authorization=bearer)) == User("bob")


def test_without_a_token_file_tokens_are_ignored(tmp_path: Path) -> None:
    harness = AuthHarness(tmp_path, PROXY)
    token = f"Bearer {harness.tokens['alice']}"
    refused = harness.authenticate(request("unix", authorization=token))
    assert isinstance(refused, Unauthenticated)
    assert str(refused).startswith("Authentication required: the proxy in front must")
    assert harness.authenticator.headers(refused) == [
        (b"WWW-Authenticate", b'Bearer realm="cartd"')
    ]
    assert harness.authenticate(request("unix", x_user="alice")) == User("alice")
    harness.poll()


@pytest.mark.parametrize(
    ("ini", "fault"),
    [
        ("[auth]\nproxy_header = X-User", "needs trusted_proxies, the peers"),
        (
            "[auth]\ntrusted_proxies = 10.0.0.1",
            "trusted_proxies has no effect without proxy_header",
        ),
        (f"[server]\nendpoint = haproxy:tcp:80\n[auth]\n{PROXY}", "on a haproxy: endpoint"),
    ],
)
def test_a_useless_or_untrusted_proxy_header_is_an_error(ini: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        TrustedProxies.from_config(load(options={}, environ={}, ini=ini))
