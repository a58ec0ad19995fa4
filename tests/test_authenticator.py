"""The guard: whom it lets in, however many others fail, and the file that it goes by."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent

from cartd.auth import TokenFile
from cartd.auth.entries import Entry
from cartd.auth.token_registry import GRACE, TOLD_EVERY, Roster
from cartd.auth.tokens import UNKNOWN, new_token
from cartd.errors import ConfigError, Unavailable, Unidentified
from cartd.model import User
from tests.authenticating import Guarding, request

ALICE = User("alice", admin=True)


@pytest.fixture
def guarding(tmp_path: Path) -> Guarding:
    return Guarding(tmp_path)


def test_a_token_is_compared_at_once_without_a_thread(guarding: Guarding) -> None:
    assert guarding.ask(guarding.tokens["alice"]) == ALICE
    assert guarding.ask(guarding.tokens["bob"]) == User("bob")
    assert guarding.threads.made == 0


def wrong_tokens(guarding: Guarding) -> list[str]:
    alice = guarding.tokens["alice"]
    return [
        *("alice.x", "nobody.x", "cartd_alice.x", new_token("alice"), new_token("nobody")),
        *(alice.replace("alice", "bob"), alice + "x", alice[:-1], alice.removeprefix("cartd_")),
    ]


def test_a_wrong_token_is_refused_and_an_unknown_name_like_it(guarding: Guarding) -> None:
    for token in wrong_tokens(guarding):
        refused = guarding.ask(token)
        assert isinstance(refused, Unidentified)
        assert str(refused).startswith("The name or the token is wrong: '")


def test_each_token_costs_one_comparison_in_constant_time_of_known_names_and_others(
    guarding: Guarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(_digest: bytes, kept: bytes) -> bool:
        compared.append(kept)
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    entry = guarding.file.entries()["alice"]
    guarding.ask(new_token("alice"))
    guarding.ask(new_token("nobody"))
    assert compared == [entry.hash.digest, UNKNOWN.digest]


def test_however_many_fail_from_one_address_a_good_token_counts(guarding: Guarding) -> None:
    for number in range(1000):
        assert isinstance(guarding.ask(f"cartd_alice.{number}"), Unidentified)
    assert guarding.ask(guarding.tokens["alice"]) == ALICE


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer nodot", "Basic !", "Basic YWxpY2U=", "Digest a=b", "\0"]
)
def test_what_names_nobody_is_refused(guarding: Guarding, header: str) -> None:
    asked = guarding.identify(request("192.0.2.1", authorization=header))
    assert isinstance(asked, Unidentified)


def test_a_change_of_the_file_counts_at_the_next_look(guarding: Guarding) -> None:
    guarding.file.revoke("bob")
    carol = guarding.file.add("carol", admin=False)
    assert isinstance(guarding.ask(carol), Unidentified)
    guarding.look()
    assert isinstance(guarding.ask(guarding.tokens["bob"]), Unidentified)
    assert guarding.ask(guarding.tokens["alice"]) == ALICE
    assert guarding.ask(carol) == User("carol")


SPOILT = {
    "broken": lambda path: path.write_text("alice\n"),
    "gone": Path.unlink,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "no text": lambda path: path.write_bytes(b"\xff"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_when_the_file_cannot_be_read_no_token_counts_after_seconds(
    guarding: Guarding, spoil: Callable[[Path], object]
) -> None:
    alice, path = guarding.tokens["alice"], guarding.file.path
    good = path.read_text()
    spoil(path)
    with capturedLogs() as logged:
        guarding.look()
        assert guarding.ask(alice) == ALICE
        guarding.look_for(int(GRACE))
        refused = guarding.ask(alice)
        assert isinstance(refused, Unavailable)
        assert refused.code == 503
        assert guarding.guard.headers(refused) == []
        assert guarding.ask("cartd_nobody.x") is not None
        [said] = [event for event in logged if event["log_level"] is LogLevel.error]
        assert formatEvent(said).startswith(f"{path}: ")
        assert "NO TOKEN IS ACCEPTED" in formatEvent(said)
        guarding.look_for(int(TOLD_EVERY) - 1)
        assert len(errors(logged)) == 1
        guarding.look_for(1)
        assert len(errors(logged)) == 2
        if path.is_dir():
            path.rmdir()
        path.write_text(good.replace("alice admin", "alice user"))
        guarding.look_for(1)
        assert guarding.ask(alice) == User("alice")
        assert formatEvent(logged[-1]) == f"{path} can be read again, and tokens are accepted"
    assert alice not in repr(logged)


def errors(logged: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in logged if event["log_level"] is LogLevel.error]


def test_a_look_that_does_not_come_back_lets_nobody_in_after_seconds(guarding: Guarding) -> None:
    alice = guarding.tokens["alice"]
    with capturedLogs() as logged:
        looking = Deferred.fromCoroutine(guarding.guard.look())
        guarding.clock.advance(GRACE - 1)
        assert guarding.ask(alice) == ALICE
        guarding.clock.advance(1)
        assert isinstance(guarding.ask(alice), Unavailable)
        [said] = errors(logged)
        assert f"{guarding.file.path}: the disk does not answer" in said
        guarding.threads.let_all_go()
        assert looking.called
        assert guarding.ask(alice) == ALICE


def test_a_file_that_is_replaced_again_and_again_keeps_nobody_out(guarding: Guarding) -> None:
    """Also when each second look meets it in the middle."""
    alice, path = guarding.tokens["alice"], guarding.file.path
    good = path.read_text()
    with capturedLogs() as logged:
        for number in range(100):
            path.write_text("ali")
            guarding.look_for(int(GRACE) - 1)
            assert guarding.ask(alice) == ALICE
            path.write_text(f"{good}# {number}\n")
            guarding.look_for(1)
            assert guarding.ask(alice) == ALICE
    assert errors(logged) == []


def test_what_is_read_while_it_is_changed_does_not_count(
    guarding: Guarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, entries = guarding.file.path, TokenFile.entries
    path.write_text("")

    def changed_meanwhile(file: TokenFile) -> Mapping[str, Entry]:
        found = entries(file)
        path.write_text("# more\n" + path.read_text())
        return found

    monkeypatch.setattr(TokenFile, "entries", changed_meanwhile)
    guarding.look()
    assert guarding.ask(guarding.tokens["alice"]) == ALICE
    monkeypatch.undo()
    guarding.look()
    assert isinstance(guarding.ask(guarding.tokens["alice"]), Unidentified)


def test_of_those_whom_a_proxy_names_only_admins_are_kept_out_by_a_broken_file(
    tmp_path: Path,
) -> None:
    guarding = Guarding(tmp_path, "proxy_header = X-User\nproxy_addresses = unix\nfile = {file}")
    guarding.file.path.write_text("x\n")
    guarding.look_for(int(GRACE) + 1)
    assert isinstance(guarding.identify(request("unix", x_user="alice")), Unavailable)
    assert guarding.identify(request("unix", x_user="bob")) == User("bob")
    assert guarding.identify(request("unix", x_user="dora")) == User("dora")


def test_a_broken_file_stops_the_start(tmp_path: Path) -> None:
    guarding = Guarding(tmp_path)
    guarding.file.path.write_text("x\n")
    with pytest.raises(ConfigError, match="tokens: line 1: is not NAME ROLE HASH"):
        Roster(guarding.file, guarding.threads, guarding.clock)


def test_of_a_secret_nothing_is_kept(guarding: Guarding) -> None:
    token = guarding.tokens["alice"]
    guarding.ask(token)
    kept = repr(vars(guarding.guard)) + repr(vars(guarding.guard._roster))
    assert "alice" in kept
    assert token.rpartition(".")[2] not in kept
