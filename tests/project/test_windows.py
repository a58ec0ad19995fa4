"""What must work on Windows, with Python's Unix-only modules and names hidden from cartd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.cart_site import CartSite
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.running_cartd import command, running_cartd, unpacked, wait_for
from tests.support.served_directory import served_directory
from tests.support.windows import on_windows

FILES = {"a/first": b"first", "second": b"second" * 100_000}


def test_all_modules_can_be_imported() -> None:
    line = [sys.executable, "-m", "tests.support.windows"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "", done.stdout


def test_the_service_starts_with_tokens_and_serves(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    ini = f"[auth]\ntoken_file = {tokens}\n"
    with (
        served_directory(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, ini=ini, started=False) as cartd,
    ):

        def token(*arguments: str) -> str:
            line = on_windows([command("cartd-cmd"), "token", *arguments])
            done = cartd.run(Path(sys.executable).name, *line[1:], check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        alice = f"Bearer {token('add', 'alice')}"
        bob = token("add", "bob")
        assert token("list") == "alice user\nbob user"
        token("revoke", "bob")
        cartd.program = on_windows(cartd.twistd)
        cartd.start()
        body = CartSite(tmp_path, cartd, archive).manifest(FILES)
        assert cartd.request("POST", "/mine", body, authorization=f"Bearer {bob}").status == 401
        assert cartd.request("POST", "/mine", body, authorization=alice).status == 201

        def status() -> str:
            headers = cartd.request("HEAD", "/mine", authorization=alice).headers
            return headers["x-pacifica-status"]

        wait_for(lambda: status() == "ready")
        tar = cartd.get("/mine?filename=mine.tar", authorization=alice)
        assert unpacked(tar.body) == FILES
        assert cartd.request("DELETE", "/mine", authorization=alice).status == 200
        wait_for(lambda: not list(cartd.volume.glob("[0-9]*/*")))
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
        assert list((cartd.volume / "holders").iterdir()) == []
