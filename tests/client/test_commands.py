"""The commands that show and change carts, with a real service; their output, also as JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from cartd_client.cli.main import cart as group
from tests.support.cart_command import CartCommand
from tests.support.cart_site import CartSite
from tests.support.running_cartd import command, entry, manifest
from tests.support.scripted_server import ScriptedServer

FILES = {"run/a.dat": b"first", "run/b.dat": b"second" * 1000}
EVIL = "run/\x1b[31mevil\u202e"


@pytest.fixture
def cart(site: CartSite, tmp_path: Path) -> CartCommand:
    return CartCommand(tmp_path, site.cartd.url)


@pytest.fixture(scope="module")
def ready(site: CartSite) -> str:
    site.stage("ready", FILES, name="Run 7", labels=["raw"])
    return "ready"


@pytest.fixture(scope="module")
def failed(site: CartSite) -> str:
    good = json.loads(site.manifest(FILES))["fileids"]
    body = manifest([*good, {**entry("none", EVIL, b""), "hashsum": ""}])
    assert site.cartd.post("failed", body).status == 201
    site.cartd.wait_until("failed", "error")
    return "failed"


# --- carts --------------------------------------------------------------------------------------


def test_a_manifest_is_submitted_under_the_same_uid_again(
    cart: CartCommand, site: CartSite
) -> None:
    (cart.directory / "my-data.json").write_bytes(site.manifest(FILES))
    first, again = cart("submit", "my-data.json"), cart("submit", "my-data.json", "--json")
    given = cart("submit", "-", "--uid", "given", stdin=site.manifest(FILES))

    assert first.status == again.status == 0
    uid = first.out.strip()
    assert again.conforming("submit") == {"uid": uid, "page": f"{site.cartd.url}/-/carts/{uid}"}
    assert (given.status, given.out) == (0, "given\n")
    assert cart("wait", uid, "--quiet").out == ""
    assert json.loads(cart("wait", uid, "--json").out)["status"] == "ready"


def test_a_ready_cart_is_shown(cart: CartCommand, ready: str) -> None:
    shown = cart("status", ready)

    assert shown.status == 0
    assert shown.out.splitlines()[:-1] == [
        "Cart     ready",
        "Name     Run 7",
        "Status   ready",
        "         The cart is ready for download.",
        "Files    2, all staged",
        "Size     6 kB",
        "Labels   raw",
    ]
    assert cart("status", ready, "--json").conforming("status")["files"]["staged"] == 2


def test_a_cart_in_error_is_shown_with_its_files(cart: CartCommand, failed: str) -> None:
    shown = cart("status", failed)
    listed = cart("files", "--failed", failed)

    assert shown.status == 5
    assert "Files    3: 2 staged, 1 failed\n" in shown.out
    reason = "the archive answered 404 Not Found to HEAD"
    assert f"Failed   run/\\x1b[31mevil\\u202e: {reason}\n" in shown.out
    assert listed.out.splitlines() == [
        "error              run/\\x1b[31mevil\\u202e",
        f"                   {reason}",
    ]
    assert listed.status == 0


def test_files_are_listed(cart: CartCommand, ready: str) -> None:
    assert cart("files", ready).out.splitlines() == [
        "staged        5 B  run/a.dat",
        "staged       6 kB  run/b.dat",
    ]
    document = cart("files", ready, "--json").conforming("files")
    assert [file["path"] for file in document["files"]] == list(FILES)
    assert cart("files", "--failed", ready, "--json").conforming("files")["files"] == []
    assert cart("files", "none", "--json").conforming("problem")["status"] == 404


def test_carts_are_listed_and_found_by_label_and_status(
    cart: CartCommand, ready: str, failed: str
) -> None:
    listed = cart("list")
    first, *others = listed.out.splitlines()

    assert first.split() == ["CART", "STATUS", "FILES", "SIZE", "CREATED", "NAME,", "LABELS"]
    assert any(row.startswith("ready ") and row.endswith("Run 7, raw") for row in others)
    found = cart("list", "--label", "raw", "--json").conforming("list")["carts"]
    assert [each["uid"] for each in found] == [ready]
    found = cart("list", "--status", "error", "--json").conforming("list")["carts"]
    assert [each["uid"] for each in found] == [failed]
    assert len(cart("list", "-n", "1").out.splitlines()) == 2
    assert cart("list", "--label", "none").out == "No carts.\n"


def test_labels_are_replaced_added_shown_and_cleared(cart: CartCommand, site: CartSite) -> None:
    site.stage("labelled", FILES)

    def labels(*given: str) -> list[str]:
        document: list[str] = cart("label", "labelled", *given, "--json").conforming("label")[
            "labels"
        ]
        return document

    assert labels("run 7", "raw") == ["run 7", "raw"]
    assert labels("checked", "--add", "raw") == ["run 7", "raw", "checked"]
    assert cart("label", "labelled").out == "run 7\nraw\nchecked\n"
    assert labels("--clear") == labels() == []
    assert cart("label", "labelled", "--clear", "x").status == 2


def test_a_cart_in_error_is_retried(cart: CartCommand, failed: str) -> None:
    retried = cart("retry", failed, "--json")

    assert retried.status == 0
    assert retried.conforming("retry")["status"] == "staging"
    assert cart("wait", failed, "--progress", "none").status == 5


def test_carts_are_deleted_and_the_others_if_one_is_missing(
    cart: CartCommand, site: CartSite
) -> None:
    for uid in ("one", "two"):
        site.stage(uid, FILES)
    deleted = cart("delete", "one", "none", "two", "--json")

    assert deleted.status == 3
    document = deleted.conforming("delete")
    assert document["deleted"] == ["one", "two"]
    assert document["problem"]["title"] == "There is no such cart"
    assert cart("status", "two").status == 3


def test_a_plan_says_what_would_be_missing(cart: CartCommand, site: CartSite, ready: str) -> None:
    good = json.loads(site.manifest(FILES))["fileids"]
    body = manifest([*good, {**entry("none", EVIL, b""), "hashsum": ""}])
    planned = cart("plan", "-", stdin=body)

    assert planned.status == 0
    assert "Not in the archive      1\n" in planned.out
    assert "run/\\x1b[31mevil\\u202e: the archive answered 404" in planned.out
    assert cart("plan", "-", "--json", stdin=body).conforming("plan")["files"]["missing"] == 1


def test_the_page_of_a_cart_is_opened_in_a_browser(
    cart: CartCommand, site: CartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opens(url: str) -> bool:
        opened.append(url)
        return len(opened) == 1

    monkeypatch.setattr("webbrowser.open", opens)
    page = f"{site.cartd.url}/-/carts/my%20cart"
    first, second = (cart("status", "--web", "my cart") for _ in range(2))

    assert opened == [page, page]
    assert (first.out, first.err) == (f"{page}\n", "")
    assert second.err == "cart: warning: No browser could be opened; open the address yourself.\n"
    assert cart("status", "--web", "my cart", "--json").conforming("status")["page"] == page


# --- options ------------------------------------------------------------------------------------


def test_common_options_stand_before_the_command_or_after_it(cart: CartCommand, ready: str) -> None:
    nowhere = ("--url", "http://127.0.0.1:1", "--retries", "0")
    before, after = cart("--json", "status", ready), cart("status", ready, "--json")

    assert before.json == after.json
    assert cart(*nowhere, "status", ready).status == 8
    assert cart("status", ready, *nowhere).status == 8
    assert cart(*nowhere, "status", ready, "--url", cart.url).status == 0, "the last one counts"


def test_a_wrong_command_line_names_the_option_and_the_help(cart: CartCommand) -> None:
    for arguments, said in {
        (): "Missing command. See 'cart --help'",
        ("stauts",): "No such command 'stauts'. Did you mean 'status'?",
        ("status",): "Missing argument 'UID'. See 'cart status --help'",
        ("status", "x", "--nope"): "No such option '--nope'. See 'cart status --help'",
        ("wait", "x", "--timeout", "soon"): "'soon' is no duration: give seconds, or 30min",
        ("get", "x", "--limit-rate", "0"): "'0' is no rate: give bytes per second, or 500k",
        ("get", "x", "-j", "0"): "'0' is no number of at least 1",
        ("get", "x", "-o", "a", "-x", "b"): "Give -o or -x",
        ("verify", "."): ". is not a bag: give --manifest or --uid",
        ("verify", "x", "--manifest", "y", "--uid", "z"): "Give --manifest or --uid, not both",
        ("completion", "tcsh"): "'tcsh' is not one of",
        ("manifest", "x", "--max-failed", "5"): "--max-failed needs --partial",
    }.items():
        ended = cart(*arguments)
        assert (ended.status, ended.out) == (2, ""), arguments
        assert said.lower() in ended.err.lower().replace("no such option: ", "no such option "), (
            ended.err
        )
        problem = cart(*arguments, "--json").conforming("problem")
        assert problem["type"] == "urn:cartd-client:usage"


def test_an_input_that_cannot_be_read_is_no_wrong_command_line(cart: CartCommand) -> None:
    for arguments in (
        ("submit", "none.json"),
        ("manifest", "none.csv"),
        ("status", "x", "--token-file", "none"),
        ("status", "x", "--profile", "none"),
        ("status", "x", "--cacert", "none"),
    ):
        ended = cart(*arguments)
        assert ended.status == 1, arguments
        assert "none" in ended.err
    (cart.directory / "client.toml").write_text("[profiles.lab]\nurl = 7\n")
    assert cart("status", "x", CARTD_URL="").status == 1
    (cart.directory / "client.toml").write_text('[profiles.lab]\nurl = "x:y"\njobs = "many"\n')
    assert cart("status", "x", CARTD_URL="").status == 1


def test_profiles_set_defaults_of_options(cart: CartCommand, site: CartSite, ready: str) -> None:
    (cart.directory / "client.toml").write_text(
        f'[profiles.lab]\nurl = "{site.cartd.url}"\nretries = 0\nprogress = "json"\n'
        '[profiles.bad]\nurl = "http://127.0.0.1:1"\nretries = -1\n'
    )
    assert cart("status", ready, "--profile", "lab", CARTD_URL="").status == 0
    bad = cart("status", ready, CARTD_PROFILE="bad", CARTD_URL="")
    assert (bad.status, bad.err) == (
        1,
        "cart: The key retries of the profile: -1 is no number of at least 0\n",
    )


def test_trouble_is_told_before_it_is_tried_again(
    cart: CartCommand, scripted: Callable[..., ScriptedServer]
) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    ended = cart("status", "x", "--retries", "1", "-v", "--url", scripted(busy, busy).url)

    assert ended.status == 8
    assert ended.err.count("503") == 1
    assert "Run the same command again later" in ended.err


def test_a_command_that_does_not_wait_gives_up_after_3_more_tries(
    cart: CartCommand, scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cartd_client.transport.FIRST_DELAY", 0.001)
    server = scripted(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    assert cart("label", "x", "y", "--url", server.url).status == 8
    assert len(server.requests) == 4


# --- output -------------------------------------------------------------------------------------


def test_quiet_commands_write_only_what_was_asked_for(cart: CartCommand, ready: str) -> None:
    assert cart("files", "-q", ready).out.count("\n") == 2
    assert cart("list", "-q", "--label", "none").out == ""
    assert cart("status", "-q", "none").err == "cart: No cart with uid none found\n"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_output_that_is_closed_ends_the_command_without_a_word(
    cart: CartCommand, ready: str, more: list[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [command("cart"), "files", ready, *more],
        stdout=writing, stderr=subprocess.PIPE, env=cart.environment(),
    )  # fmt: skip
    os.close(writing)

    assert (ended.returncode, ended.stderr) == (1, b"")


def test_output_has_no_colours_without_a_terminal(cart: CartCommand, failed: str) -> None:
    shown = cart("status", failed, TERM="xterm-256color")
    missing = cart("status", "none")

    assert "\x1b" not in shown.out + missing.err


# --- help ---------------------------------------------------------------------------------------


def test_the_help_of_each_command_has_examples_that_are_right(cart: CartCommand) -> None:
    for name, made in group.commands.items():
        shown = cart(name, "--help")
        assert shown.status == 0
        assert "Examples:\n" in shown.out, name
        assert "Common options:\n" in shown.out
        assert max(map(len, shown.out.splitlines())) <= 80
        examples = re.findall(rf"cart {name}\b([^|>&)\n]*)", shown.out.partition("Examples:")[2])
        assert examples, name
        for example in examples:
            made.make_context(name, shlex.split(example))


def test_the_help_names_each_command_and_exit_status(cart: CartCommand) -> None:
    shown = cart("--help").out

    assert set(group.list_commands(click.Context(group))) == set(group.commands)
    for name in group.commands:
        assert f"\n  {name} " in shown
    for status in (*range(12), 130):
        assert f"\n    {status:3}  " in shown


def test_a_shell_completes_commands_and_options(cart: CartCommand) -> None:
    for shell in ("bash", "zsh", "fish"):
        made = cart("completion", shell)
        assert made.status == 0
        assert "_CART_COMPLETE" in made.out
        assert cart("completion", shell, "--json").conforming("completion")["script"] in made.out
    script = cart("completion", SHELL="/bin/bash").out
    for words, place in (("cart de", 1), ("cart wait --p", 2)):
        script += f"COMP_WORDS=({words}); COMP_CWORD={place}; COMPREPLY=(); _cart_completion cart\n"
        script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(
        ["bash", "-c", f'PATH="{Path(command("cart")).parent}:$PATH"\n{script}'],
        check=True, capture_output=True, text=True, env=cart.environment(),
    )  # fmt: skip

    assert done.stdout.splitlines() == ["delete", "--progress --partial --profile"]
