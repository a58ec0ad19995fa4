"""``cart login``: asks without echo, checks the token, and stores it for its user only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cart_command import CartCommand, terminal
from tests.support.cart_site import CartSite

Tokens = tuple[Path, dict[str, str]]


@pytest.fixture
def cart(auth_site: CartSite, tmp_path: Path) -> CartCommand:
    return CartCommand(tmp_path, "")


def test_a_token_is_asked_for_without_echo_and_used_from_then_on(
    cart: CartCommand, auth_site: CartSite, tokens: Tokens
) -> None:
    url, token = auth_site.cartd.url, tokens[1]["alice"]
    with terminal(cart, ["login", "--url", url], 80) as shown:
        shown.wait_for(f"Token for {url}:")
        shown.type(token, "Enter")
        screen = shown.wait_for("ended: 0")

    assert token not in screen.replace("\n", "")
    assert f"Commands now use {url}. The token is in " in screen
    stored = cart.directory / "default.token"
    assert stored.read_text().strip() == token
    assert stored.stat().st_mode & 0o777 == 0o600
    assert token not in (cart.directory / "client.toml").read_text()
    assert cart("list").out == "No carts.\n"


def test_a_wrong_token_is_not_stored(
    cart: CartCommand, auth_site: CartSite, tokens: Tokens
) -> None:
    ended = cart("login", "--url", auth_site.cartd.url, stdin=b"cartd_alice.wrong\n")

    assert ended.status == 9
    assert "does not accept this token: nothing was stored" in ended.err
    assert not list(cart.directory.iterdir())
    assert cart("login", "--url", auth_site.cartd.url, stdin=b"\n").status == 1


def test_a_token_of_a_file_is_stored_under_its_profile(
    cart: CartCommand, auth_site: CartSite, tokens: Tokens
) -> None:
    file = cart.directory / "token"
    file.touch(0o600)
    file.write_text(tokens[1]["root"])
    ended = cart(
        "login", "--url", auth_site.cartd.url, "--profile", "lab", "--token-file", "token", "--json"
    )

    assert ended.conforming("login") == {
        "url": auth_site.cartd.url,
        "profile": "lab",
        "stored": str(cart.directory / "lab.token"),
    }
    assert cart("list", "--profile", "lab").status == 0


def test_a_service_that_needs_no_token_is_noted(cart: CartCommand, site: CartSite) -> None:
    ended = cart("login", "--url", site.cartd.url)

    assert ended.out == f"Commands now use {site.cartd.url}. The service needs no token.\n"
    assert cart("status", "none").err.startswith("cart: No cart with uid none found")


def test_a_command_without_credentials_names_login(cart: CartCommand, auth_site: CartSite) -> None:
    ended = cart("list", "--url", auth_site.cartd.url)

    assert ended.status == 9
    assert "'cart login' stores a token" in ended.err
    assert "run cart login" in cart("list").err, "nor a URL"
