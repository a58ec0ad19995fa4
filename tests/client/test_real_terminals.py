"""The command on terminals: wide, narrow and dumb; Ctrl-C there; and on none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.support.cart_command import CartCommand, terminal
from tests.support.cart_site import CartSite

BIG = {f"run/{number}.dat": bytes([number]) * 300_000 for number in range(4)}
SLOW = ("--limit-rate", "100k")


@pytest.fixture(scope="module")
def big(site: CartSite) -> str:
    site.stage("big", BIG, name="Four files", labels=["run 7"])
    return "big"


@pytest.fixture
def cart(site: CartSite, tmp_path: Path) -> CartCommand:
    return CartCommand(tmp_path, site.cartd.url)


@pytest.mark.parametrize("width", [100, 40])
def test_a_bar_goes_when_the_command_ends_or_is_interrupted(
    cart: CartCommand, big: str, width: int
) -> None:
    with terminal(cart, ["get", big, "-x", ".", *SLOW], width) as shown:
        first, second = shown.wait_for(" left").split("\n")[:2]
        shown.type("C-c")
        interrupted = shown.wait_for("ended: 130")
    with terminal(cart, ["get", big, "-x", "."], width) as shown:
        ended = shown.wait_for("ended: 0")

    assert first.startswith("Downloading ")
    assert "\u2501" in first
    assert first.endswith(" %")
    assert " of 1.21 MB, " in second
    assert max(cell_len(first), cell_len(second)) <= width
    assert "\u2501" not in interrupted
    assert interrupted.replace("\n", " ").startswith("cart: Interrupted. To go on, run the same")
    assert " left" not in interrupted
    assert ended == "4 files, 1.2 MB, all verified (sha1)\nended: 0"


def test_a_dumb_terminal_gets_lines_without_colours(cart: CartCommand, big: str) -> None:
    with terminal(cart, ["get", big, "-x", "."], 100, "dumb") as shown:
        *lines, summary, _ = shown.wait_for("ended: 0").split("\n")
        raw = shown.tmux("capture-pane", "-p", "-e", "-t", "cart")

    assert re.fullmatch(r"20\S+ \S+ Downloading: \d+ %, .+ of 4 files", lines[0])
    assert summary == "4 files, 1.2 MB, all verified (sha1)"
    assert "\x1b" not in raw


def test_a_status_fits_a_narrow_terminal(cart: CartCommand, big: str) -> None:
    with terminal(cart, ["status", big], 40) as shown:
        screen = shown.wait_for("ended: 0")
        raw = shown.tmux("capture-pane", "-p", "-e", "-t", "cart")
    with terminal(cart, ["list"], 40) as shown:
        listed = shown.wait_for("ended: 0")

    assert screen.split("\n")[:7] == [
        "Cart     big",
        "Name     Four files",
        "Status   ready",
        "         The cart is ready for download.",
        "Files    4, all staged",
        "Size     1.2 MB",
        "Labels   run 7",
    ]
    assert "\x1b[32mready" in raw, "green"
    assert listed.split("\n")[0] == "big"
    assert listed.split("\n")[1].startswith("  ready, 4 files, 1.2 MB, ")


def test_a_terminal_is_asked_before_a_cart_is_deleted(cart: CartCommand, site: CartSite) -> None:
    site.stage("kept", {"a": b""})
    with terminal(cart, ["delete", "kept"], 80) as shown:
        shown.wait_for("Delete kept on the service? [y/N]")
        shown.type("n", "Enter")
        shown.wait_for("Nothing was deleted.\nended: 1")
    assert cart("status", "kept").status == 0
    with terminal(cart, ["delete", "kept"], 80) as shown:
        shown.wait_for("[y/N]")
        shown.type("y", "Enter")
        shown.wait_for("kept is deleted.\nended: 0")
