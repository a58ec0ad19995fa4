"""Each exit status by a real run: a process of the command, a real service, a real disk."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cartd_client import ExitStatus
from cartd_client.cli.signals import handled
from tests.support.cart_command import CartCommand, RunningCart
from tests.support.cart_site import CartSite
from tests.support.running_cartd import (
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    wait_for,
)

FILES = {"run/a.dat": b"first", "run/b.dat": b"second" * 1000}
BIG = {f"{number}.dat": bytes([number]) * 400_000 for number in range(4)}
SLOW = ("--limit-rate", "200k", "--progress", "json")
"""The download of BIG takes 8 seconds."""


@pytest.fixture
def cart(site: CartSite, tmp_path: Path) -> CartCommand:
    return CartCommand(tmp_path, site.cartd.url)


@pytest.fixture(scope="module")
def big(site: CartSite) -> str:
    site.stage("big", BIG)
    return "big"


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCartd]:
    """A service whose archive is unavailable, with a cart."""
    directory = tmp_path_factory.mktemp("waiting")
    with running_cartd(directory, archive="http://127.0.0.1:1/") as service:
        assert service.post("waits", manifest([entry("1", "a", b"")])).status == 201
        yield service


def under_way(cart: CartCommand, *arguments: str) -> RunningCart:
    """Start a slow download, and wait until a part of it is there."""
    running = cart.start(*arguments, *SLOW)

    def has_a_part() -> bool:
        assert running.process.poll() is None, running.err
        lines = [json.loads(line) for line in running.err.splitlines() if line.endswith("}")]
        return any(line.get("bytes_done", 0) > 100_000 for line in lines)

    wait_for(has_a_part)
    return running


def test_0_whole_and_verified(cart: CartCommand, site: CartSite) -> None:
    (cart.directory / "my-data.json").write_bytes(site.manifest(FILES))
    ended = cart.process("fetch", "my-data.json")

    assert (ended.status, ended.out) == (0, "2 files, 6 kB, all verified (sha1)\n")
    for path, data in FILES.items():
        assert (cart.directory / "my-data" / path).read_bytes() == data


def test_1_any_other_error(cart: CartCommand) -> None:
    ended = cart.process("fetch", "none.json")

    assert ended.status == 1
    assert ended.err == "cart: The manifest none.json cannot be read: No such file or directory\n"


def test_2_a_wrong_command_line(cart: CartCommand) -> None:
    assert cart.process("fetch").status == 2


def test_3_no_such_cart(cart: CartCommand) -> None:
    ended = cart.process("get", "none", "-x", "data")

    assert ended.status == 3
    assert not (cart.directory / "data").exists()


def test_4_missing_files_and_6_wrong_ones(cart: CartCommand, site: CartSite) -> None:
    (cart.directory / "my-data.json").write_bytes(site.manifest(FILES))
    assert cart("fetch", "my-data.json").status == 0
    check = ("verify", "my-data", "--manifest", "my-data.json")
    assert cart(*check).out == "2 files, 6 kB, all verified (sha1)\n"

    (cart.directory / "my-data" / "run" / "a.dat").unlink()
    missing = cart.process(*check)
    (cart.directory / "my-data" / "run" / "b.dat").write_bytes(b"secone" * 1000)
    wrong = cart.process(*check)

    assert missing.status == 4
    assert missing.out.splitlines()[-1].endswith("1 missing, 1 verified (sha1)")
    assert missing.out.startswith("missing: run/a.dat: ")
    assert wrong.status == 6
    assert wrong.out.startswith("wrong: run/b.dat: ")
    document = cart(*check, "--json").conforming("verify")
    assert [file["path"] for file in document["failed"]] == ["run/b.dat"]
    assert [file["path"] for file in document["missing"]] == ["run/a.dat"]


def test_4_a_partial_cart_unless_that_is_acceptable(cart: CartCommand, site: CartSite) -> None:
    body = json.loads(site.manifest(FILES, on_error="partial"))
    body["fileids"].append({**entry("partial-c", "run/c.dat", b""), "hashsum": ""})
    (cart.directory / "my-data.json").write_text(json.dumps(body))
    partial = cart.process("fetch", "my-data.json", "--uid", "partial", "--delete-after")

    assert partial.status == 4
    assert partial.out.splitlines()[0].startswith("missing: run/c.dat: ")
    assert partial.out.splitlines()[-1].endswith("1 missing, 2 verified (sha1)")
    assert "was not deleted" in partial.err
    assert (cart.directory / "my-data" / "run" / "a.dat").read_bytes() == FILES["run/a.dat"]
    assert cart("fetch", "my-data.json", "--uid", "partial", "--partial", "ok").status == 0
    assert cart("status", "partial").status == cart("wait", "partial").status == 4
    assert (cart.directory / "my-data.missing.json").is_file()
    assert cart("wait", "partial", "--partial", "ok").status == 0
    site.archive.put("partial-c", b"third")
    assert cart("retry", "partial").status == 0
    whole = cart("fetch", "my-data.json", "--uid", "partial")
    assert (whole.status, whole.out) == (0, "3 files, 6.01 kB, all verified (sha1)\n")
    assert not (cart.directory / "my-data.missing.json").exists()


def test_5_a_cart_in_error(cart: CartCommand) -> None:
    body = manifest([{**entry("none", "a", b""), "hashsum": ""}])
    (cart.directory / "my-data.json").write_bytes(body)
    ended = cart.process("fetch", "my-data.json", "--json")

    assert ended.status == 5
    assert ended.conforming("problem")["title"] == "The cart could not be staged"


def test_7_the_time_has_passed(cart: CartCommand, waiting: RunningCartd) -> None:
    ended = cart.process("wait", "waits", "--url", waiting.url, "--timeout", "0.5")

    assert ended.status == 7
    assert "The cart is staged all the same" in ended.err


def test_8_a_service_that_cannot_be_reached(cart: CartCommand) -> None:
    ended = cart.process("wait", "x", "--url", "http://127.0.0.1:1", "--retries", "1")

    assert ended.status == 8
    assert "Connection refused" in ended.err


def test_9_not_allowed(cart: CartCommand, auth_site: CartSite) -> None:
    ended = cart.process("status", "x", "--url", auth_site.cartd.url)

    assert ended.status == 9
    assert "cart login" in ended.err


def test_10_no_space_on_this_disk(cart: CartCommand, big: str) -> None:
    ended = cart.start("get", big, "-o", "-", out="/dev/full").ended()

    assert ended.status == 10
    assert "No space left on device" in ended.err


def test_11_the_cart_has_changed(cart: CartCommand, site: CartSite) -> None:
    site.stage("changes", BIG)
    running = under_way(cart, "get", "changes", "-o", "my-data.tar")
    running.process.kill()
    running.ended()
    site.stage("changes", {**BIG, "new": b"new"})
    changed = cart.process("get", "changes", "-o", "my-data.tar")

    assert changed.status == 11
    assert "--restart" in changed.err
    assert not (cart.directory / "my-data.tar").exists()
    anew = cart.process("get", "changes", "-o", "my-data.tar", "--restart")
    assert (anew.status, anew.out) == (0, "5 files, 1.6 MB, all verified (sha1)\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_130_interrupted_and_resumed(cart: CartCommand, big: str, number: signal.Signals) -> None:
    running = under_way(cart, "get", big, "-x", "my data")
    running.process.send_signal(number)
    ended = running.ended()

    assert ended.status == 130
    said = f"Interrupted. To go on, run the same command again: cart get {big} -x 'my data'"
    assert said in ended.err
    assert cart("get", big, "-x", "my data").status == 0
    for path, data in BIG.items():
        assert (cart.directory / "my data" / big / path).read_bytes() == data


def test_130_at_once_if_it_is_interrupted_twice(cart: CartCommand, big: str) -> None:
    running = under_way(cart, "get", big, "-x", "data")
    for _ in range(2):
        running.process.send_signal(signal.SIGINT)

    assert running.ended().status == 130
    assert cart("get", big, "-x", "data").out == "4 files, 1.6 MB, all verified (sha1)\n"


def test_a_signal_that_is_ignored_as_by_nohup_stays_ignored() -> None:
    before, term = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with handled():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is term


def test_every_exit_status_has_a_test() -> None:
    names = " ".join(name for name in globals() if name.startswith("test_"))

    for status in ExitStatus:
        assert f"_{int(status)}_" in names
