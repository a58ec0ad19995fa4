"""Caches between service and clients: no user gets a tar of another, or a deleted one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cartd.auth import TokenFile
from tests.support.caches import nginx, squid, varnish
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer, ask, wait_for

CACHES = ("nginx", "squid", "varnish")
each_cache = pytest.mark.parametrize("cache", CACHES)
TAR = "?filename=data.tar"
PASS_HEAD = 'sub vcl_recv { if (req.method == "HEAD") { return (pass); } }'


@dataclass(frozen=True, slots=True)
class Users:
    """A service with authentication, and the caches in front of it."""

    site: CartSite
    tokens: dict[str, str]
    ports: dict[str, int]

    def by_token(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens[name]}"}

    def by_proxy(self, name: str) -> dict[str, str]:
        return {"x_user": name}


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    directory = tmp_path_factory.mktemp("users")
    file = TokenFile(directory / "tokens")
    tokens = {name: file.add(name, admin=False) for name in ("alice", "bob", "carol")}
    ini = f"[auth]\ntoken_file = {file.path}\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"
    with ExitStack() as stack:
        site = stack.enter_context(cart_site(directory, ini=ini))
        ports = {
            "nginx": stack.enter_context(nginx(directory / "nginx", site.port)),
            "squid": stack.enter_context(squid(directory / "squid", site.port)),
            "varnish": stack.enter_context(varnish(directory / "varnish", site.port)),
        }
        yield Users(site, tokens, ports)


def stage(users: Users, uid: str, files: dict[str, bytes], **credentials: str) -> None:
    assert (
        ask(users.site.port, "POST", f"/{uid}", users.site.manifest(files), **credentials).status
        == 201
    )
    wait_until_ready(users.site.port, uid, **credentials)


def wait_until_ready(port: int, uid: str, **credentials: str) -> None:
    wait_for(
        lambda: (
            ask(port, "HEAD", f"/{uid}", None, **credentials).headers["x-pacifica-status"]
            == "ready"
        )
    )


def download(port: int, uid: str, **credentials: str) -> Answer:
    return ask(port, "GET", f"/{uid}{TAR}", None, **credentials)


@each_cache
@pytest.mark.parametrize("way", ["by_token", "by_proxy"])
def test_no_user_gets_the_tar_of_another(users: Users, cache: str, way: str) -> None:
    uid, port, credentials = f"{way}-{cache}", users.ports[cache], getattr(users, way)
    for name in ("alice", "bob"):
        stage(users, uid, {"whose": name.encode() * 100}, **credentials(name))
    for _ in range(2):
        for name in ("alice", "bob"):
            got, direct = (
                download(port, uid, **credentials(name)),
                download(users.site.port, uid, **credentials(name)),
            )
            assert (got.status, got.body) == (200, direct.body)
            assert name.encode() * 100 in got.body
        assert download(port, uid, **credentials("carol")).status == 404
        assert download(port, uid).status == 401
        assert "no-store" in download(port, uid).headers["cache-control"]


@each_cache
def test_deleted_or_reposted_cart_is_not_served_from_a_cache(users: Users, cache: str) -> None:
    uid, port, alice = f"gone-{cache}", users.ports[cache], users.by_proxy("alice")
    stage(users, uid, {"which": b"first" * 100}, **alice)
    for _ in range(2):
        assert b"first" * 100 in download(port, uid, **alice).body
    assert ask(port, "DELETE", f"/{uid}", None, **alice).status == 200
    assert download(port, uid, **alice).status == 404
    stage(users, uid, {"which": b"other" * 100}, **alice)
    assert b"other" * 100 in download(port, uid, **alice).body


@each_cache
def test_polling_through_a_cache_sees_the_cart_become_ready(users: Users, cache: str) -> None:
    uid, port, alice = f"polled-{cache}", users.ports[cache], users.by_proxy("alice")
    for _ in range(2):
        head = ask(port, "HEAD", f"/{uid}", None, **alice)
        assert (head.status, head.headers["x-pacifica-status"]) == (404, "error")
    posted = ask(port, "POST", f"/{uid}", users.site.manifest({"a": b"data"}), **alice)
    assert posted.status == 201
    head = ask(port, "HEAD", f"/{uid}", None, **alice)
    assert head.headers["x-pacifica-status"] in ("staging", "ready")
    wait_until_ready(port, uid, **alice)
    assert b"data" in download(port, uid, **alice).body


CURED = {
    "nginx": (nginx, "proxy_cache_convert_head off;"),
    "varnish": (varnish, PASS_HEAD),
}


@pytest.mark.parametrize(("cache", "setting"), CURED.values(), ids=CURED.keys())
def test_cache_configured_to_pass_head_forwards_it(
    users: Users, tmp_path: Path, cache: object, setting: str
) -> None:
    alice = users.by_proxy("alice")
    stage(users, "passed", {"a": b"data"}, **alice)
    assert callable(cache)
    with cache(tmp_path / "cache", users.site.port, setting) as port:
        direct = ask(users.site.port, "HEAD", "/passed", None, **alice)
        through = ask(port, "HEAD", "/passed", None, **alice)
    assert (through.status, direct.status) == (204, 204)
    status_headers = {name for name in direct.headers if name.startswith("x-pacifica")}
    assert {name: through.headers[name] for name in status_headers} == {
        name: direct.headers[name] for name in status_headers
    }
