"""Browsers get pages; programs get what they got before."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from cartd.auth import TokenFile
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer, entry, manifest

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
PROGRAMS = ["*/*", "application/json", "text/*", "text/html;q=0.5, application/json",
            "application/json, text/html", "text/html;q=x", "text/html;q=0", ""]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("ready", {"a/one": b"first"})
        running.cartd.post("bad", manifest([entry("no-such-id", "gone", b"")]))
        running.cartd.wait_until("bad", "error")
        yield running


def browse(site: CartSite, path: str, **headers: str) -> Answer:
    return site.cartd.get(path, Accept=BROWSER, **headers)


def is_page(answer: Answer) -> bool:
    return answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/-/carts/ready"])
@pytest.mark.parametrize("accept", PROGRAMS)
def test_programs_get_json(site: CartSite, path: str, accept: str) -> None:
    answer = site.cartd.get(path, Accept=accept)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("path", "code"),
    [("/", 200), ("/-/carts/ready", 200), ("/-/carts/bad", 200), ("/-/carts/none", 404),
     ("/bad", 500), ("/none", 404), ("/-/admin", 200), ("/-/carts", 403),
     ("/-/carts/%00", 404), ("/%00", 404)],
)  # fmt: skip
def test_a_browser_gets_a_page_with_the_status_of_the_program(
    site: CartSite, path: str, code: int
) -> None:
    answer = browse(site, path)
    assert answer.status == code
    assert is_page(answer) and answer.body.startswith(b"<!DOCTYPE html>")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    sources = {source for part in policy.split(";") for source in part.split()[1:]}
    assert sources == {"'self'", "'none'"}
    assert b"style=" not in answer.body and b"onclick" not in answer.body


def test_a_ready_cart_is_the_tar_for_browsers_too(site: CartSite) -> None:
    answers = [
        get("/ready?filename=x.tar") for get in (site.cartd.get, lambda path: browse(site, path))
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body
    own = {"date": "", "x-request-id": ""}
    assert {**answers[0].headers, **own} == {**answers[1].headers, **own}


def test_the_list_is_filtered_and_continues(tmp_path: Path) -> None:
    with cart_site(tmp_path, ini="[page]\nlist = on\n") as listed:
        for number in range(52):
            label = "odd" if number % 2 else "even"
            listed.cartd.post(f"cart-{number}", manifest([], labels=[label]))
        first = browse(listed, "/-/carts").body.decode()
        assert "cart-51" in first and "cart-1<" not in first
        following = re.search(r'href="(/-/carts\?[^"]*after[^"]*)"', first)
        assert following
        rest = browse(listed, following[1].replace("&amp;", "&")).body.decode()
        assert "cart-1<" in rest and "cart-0<" in rest and "cart-51" not in rest
        odd = browse(listed, "/-/carts?status=&label=odd&owner=").body.decode()
        assert "cart-51" in odd and "cart-50" not in odd
        assert "cart-51" in browse(listed, "/").body.decode()
        assert browse(listed, "/-/carts?status=none").status == 400


def test_the_service_is_shown_to_administrators_only(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens")
    user, admin = tokens.add("alice", admin=False), tokens.add("root", admin=True)
    with cart_site(tmp_path / "site", ini=f"[auth]\ntoken_file = {tokens.path}\n") as guarded:
        for token, code in ((user, 403), (admin, 200)):
            answer = browse(guarded, "/-/admin", Authorization=f"Bearer {token}")
            assert answer.status == code and is_page(answer)
            # Also where nothing is required, a user is known by the token.
            start = browse(guarded, "/", Authorization=f"Bearer {token}").body
            assert (b"/-/admin" in start) is (code == 200)
        stranger = browse(guarded, "/")
        assert b"Sign in" in stranger.body and b"/-/admin" not in stranger.body
        assert browse(guarded, "/", Authorization="Bearer wrong").status == 200


def test_a_browser_that_is_not_authenticated_gets_a_page(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens")
    tokens.add("alice", admin=False)
    with cart_site(tmp_path / "site", ini=f"[auth]\ntoken_file = {tokens.path}\n") as guarded:
        for path in ("/-/carts", "/mine", "/-/admin"):
            answer = browse(guarded, path)
            assert answer.status == 401 and is_page(answer)
            assert "Basic" in answer.headers["www-authenticate"]
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert not is_page(guarded.cartd.get(path))


def test_behind_a_proxy_on_the_same_machine_nobody_is_local(site: CartSite) -> None:
    assert browse(site, "/-/admin", **{"X-Forwarded-For": "192.0.2.1"}).status == 403


@pytest.mark.parametrize(
    ("hash_types", "more", "folder"),
    [(("sha256", "sha256"), {}, "shell-sha256-sha256"),
     (("sha1", "md5"), {"name": "My data", "bundle": True}, "My data")],
)  # fmt: skip
def test_the_commands_of_the_page_download_and_check_the_files(
    site: CartSite, tmp_path: Path, hash_types: tuple[str, str], more: Any, folder: str
) -> None:
    uid = "-".join(("shell", *hash_types))
    entries = []
    for number, (path, data) in enumerate({"a b/one": b"first", "two": b"2"}.items()):
        site.archive.put(f"{uid}-{number}", data)
        entries.append(entry(f"{uid}-{number}", path, data, hash_types[number]))
    assert site.cartd.post(uid, manifest(entries, **more)).status == 201
    site.cartd.wait_until(uid, "ready")
    page = browse(site, f"/-/carts/{uid}").body.decode()
    commands = [unescape(text) for text in re.findall("<pre[^>]*><code>([^<]*)</code>", page)]
    assert len(commands) == 3
    bags = [unescape(url) for url in re.findall('href="([^"]*format=bag[^"]*)"', page)]
    assert len(bags) == (1 if len(set(hash_types)) == 1 else 0)  # no hash in common, no bag
    assert all(site.cartd.get(url).status == 200 for url in bags)
    by_client = tmp_path / "by-client"
    by_client.mkdir()
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    client = subprocess.run(
        ["bash", "-c", commands[0]], cwd=by_client, capture_output=True, timeout=60,
        env={**os.environ, "PATH": programs, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert client.returncode == 0, client.stderr
    assert [one.read_bytes() for one in by_client.rglob("a b/one")] == [b"first"]
    script = "set -e -o pipefail\n" + "\n".join(commands[1:])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    unpacked = tmp_path / folder
    assert (unpacked / "a b" / "one").read_bytes() == b"first"

    (unpacked / "two").write_bytes(b"3")
    check = commands[2].partition("cd ")[2].partition("\n")[2]
    again = subprocess.run(["bash", "-c", check], cwd=unpacked, capture_output=True, timeout=60)
    assert again.returncode == 1 and b"two: FAILED" in again.stdout


@pytest.mark.parametrize("path", ["/bad", "/none"])
def test_the_answers_about_a_cart_do_not_vary_for_programs(site: CartSite, path: str) -> None:
    answer = site.cartd.get(path)
    assert answer.headers["content-type"] == "application/json"
    assert "vary" not in answer.headers and "content-security-policy" not in answer.headers


def test_the_start_page_leads_to_the_cart_that_is_asked_for(site: CartSite) -> None:
    answer = browse(site, "/?" + urlencode({"uid": " a b/../\r\nX: y "}))
    assert (answer.status, answer.headers["location"]) == (
        303,
        "/-/carts/a%20b%2F..%2F%0D%0AX%3A%20y",
    )


def test_a_file_of_the_page_is_kept_for_ever_under_its_version(site: CartSite) -> None:
    page = browse(site, "/").body.decode()
    url = page.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    answer = site.cartd.get(url)
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    plain = site.cartd.get(url.partition("?")[0])
    assert plain.headers["cache-control"] == "public, max-age=3600"
    again = site.cartd.get(url, **{"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["none.css", "..%2Fcart.py", "..", "%2e%2e%2fassets.py"])
def test_nothing_else_is_served(site: CartSite, name: str) -> None:
    assert site.cartd.get(f"/-/static/{name}").status == 404


def test_a_page_with_all_that_it_loads_is_small(site: CartSite) -> None:
    static = files("cartd.page") / "static"
    loaded = ("pico.css", "style.css", "page.js", "logo.svg", "favicon.svg")
    size = sum(len((static / name).read_bytes()) for name in loaded)
    assert size + len(browse(site, "/-/carts/bad").body) <= 60_000


def form_token(site: CartSite, uid: str) -> str:
    """Return the token of the forms on the page of a cart."""
    page = browse(site, f"/-/carts/{uid}").body.decode()
    found = re.findall(r'name="form_token"[^>]* value="([^"]+)"', page)
    assert found and len(set(found)) == 1, page
    token: str = found[0]
    return token


def send_form(site: CartSite, uid: str, **fields: str) -> Answer:
    fields = {"form_token": form_token(site, uid)} | fields
    return site.cartd.request("POST", f"/-/carts/{uid}/form", urlencode(fields).encode())


def test_a_form_deletes_a_cart(site: CartSite) -> None:
    site.stage("old", {"a": b"x"})
    answer = send_form(site, "old", action="delete", back="list")
    assert (answer.status, answer.headers["location"]) == (303, "/-/carts")
    assert site.cartd.get("/-/carts/old").status == 404


@pytest.mark.parametrize("token", ["", "x", "A" * 50, "\xe9"])
def test_a_form_without_a_valid_token_is_rejected(site: CartSite, token: str) -> None:
    answer = send_form(site, "ready", action="delete", form_token=token)
    assert answer.status == 403
    assert b"Reload the page" in answer.body
    assert site.cartd.get("/-/carts/ready").status == 200


def test_an_unknown_action_is_rejected(site: CartSite) -> None:
    assert send_form(site, "ready", action="burn").status == 400


@pytest.mark.parametrize("body", [b"\xff", b"a=b&" * 20, b"action=delete&" + b"x" * 5000])
def test_any_other_form_is_rejected(site: CartSite, body: bytes) -> None:
    assert site.cartd.request("POST", "/-/carts/ready/form", body).status == 400
    assert site.cartd.get("/-/carts/ready").status == 200


def test_a_form_retries_a_cart_in_error(site: CartSite) -> None:
    site.cartd.post("again", manifest([entry("comes-later", "a", b"data")]))
    site.cartd.wait_until("again", "error")
    site.archive.put("comes-later", b"data")
    answer = send_form(site, "again", action="retry")
    assert (answer.status, answer.headers["location"]) == (303, "/-/carts/again")
    site.cartd.wait_until("again", "ready")


def test_a_form_of_another_site_is_rejected(site: CartSite) -> None:
    answer = site.cartd.request(
        "POST", "/-/carts/ready/form", b"action=delete", Origin="http://evil.example"
    )
    assert answer.status == 403
