"""The gateway of docs/authentication.md, as it stands there, in a real nginx before the service."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.test_documentation import DOCS, blocks
from tests.support.gateways import running_nginx
from tests.support.running_cartd import DEADLINE, RunningCartd, manifest, running_cartd

INI = "[auth]\nproxy_header = X-Remote-User\ntrusted_proxies = unix\n"
PASSWORDS = "alice:{PLAIN}secret\nbob:{PLAIN}other\n"
MANY = manifest(
    {"id": n, "path": f"d/{n}", "hashtype": "sha1", "hashsum": ""} for n in range(40_000)
)
"""More than nginx takes by default."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where nginx listens."""
    directory = tmp_path_factory.mktemp("gateway")
    passwords, listening = directory / "htpasswd", directory / "http.sock"
    passwords.write_text(PASSWORDS)
    [location] = blocks(DOCS / "authentication.md", "nginx")
    location = location.replace("/etc/nginx/cartd.htpasswd", str(passwords))
    location = location.replace("/run/cartd/proxy/http.sock", str(listening))
    with running_cartd(
        directory / "cartd", archive="http://127.0.0.1:9/", ini=INI, started=False
    ) as cartd:
        cartd.options = endpoints(cartd, listening)
        cartd.start()
        # nginx runs as this very user here, or as root, so that no group is needed.
        with running_nginx(directory, location) as port:
            yield f"http://127.0.0.1:{port}"


def endpoints(cartd: RunningCartd, listening: Path) -> tuple[str, ...]:
    plain = f"tcp:{cartd.port}:interface=127.0.0.1"
    return "--endpoint", plain, "--endpoint", f"unix:{listening}:mode=660"


def status(*arguments: str, stdin: bytes = b"") -> str:
    code = ("-s", "-o", "/dev/null", "-w", "%{http_code}")
    done = subprocess.run(
        ["curl", *code, *arguments], input=stdin, capture_output=True, timeout=DEADLINE
    )
    return done.stdout.decode()


def test_a_client_without_a_password_is_rejected(gateway: str) -> None:
    url = f"{gateway}/my-cart"
    assert status("-u", "alice:wrong", url) == "401"
    assert status("-u", "carol:secret", url) == "401"
    assert status(url) == "401"
    assert status("-H", "X-Remote-User: alice", url) == "401"


def test_a_password_authenticates_only_its_user(gateway: str) -> None:
    url = f"{gateway}/hers"
    post = ("-X", "POST", "--data-binary", "@-")
    assert status("-u", "alice:secret", *post, url, stdin=MANY) == "201"
    assert status("-u", "alice:secret", "-I", url) == "204"
    for more in ((), ("-H", "X-Remote-User: alice")):
        assert status("-u", "bob:other", *more, "-I", url) == "404"


def test_a_page_of_another_site_is_known_behind_it(gateway: str) -> None:
    post = ("-u", "alice:secret", "-X", "POST", "--data-binary", "@-", f"{gateway}/page")
    empty = b'{"fileids": []}'
    assert status("-H", "Origin: https://evil.example", *post, stdin=empty) == "403"
    assert status("-H", f"Origin: {gateway}", *post, stdin=empty) == "201"
