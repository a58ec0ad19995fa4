"""The authenticator: accepted and rejected tokens, and reloads of the token file."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent

from cartd.auth import TokenFile
from cartd.auth.token_file import GRACE, LOG_INTERVAL, TokenRegistry
from cartd.auth.tokens import DUMMY_HASH, Entry, new_token
from cartd.errors import ConfigError, Unauthenticated, Unavailable
from cartd.model import User
from tests.support.auth_harness import AuthHarness, request

ALICE = User("alice", admin=True)


@pytest.fixture
def harness(tmp_path: Path) -> AuthHarness:
    return AuthHarness(tmp_path)


def test_a_token_is_compared_at_once_without_a_thread(harness: AuthHarness) -> None:
    assert harness.ask(harness.tokens["alice"]) == ALICE
    assert harness.ask(harness.tokens["bob"]) == User("bob")
    assert harness.threads.made == 0


def wrong_tokens(harness: AuthHarness) -> list[str]:
    alice = harness.tokens["alice"]
    return [
        *("alice.x", "nobody.x", "cartd_alice.x", new_token("alice"), new_token("nobody")),
        *(alice.replace("alice", "bob"), alice + "x", alice[:-1], alice.removeprefix("cartd_")),
    ]


def test_a_wrong_token_is_refused_like_an_unknown_name(harness: AuthHarness) -> None:
    for token in wrong_tokens(harness):
        refused = harness.ask(token)
        assert isinstance(refused, Unauthenticated)
        assert str(refused).startswith("The name or the token is wrong: '")


def test_every_token_costs_one_constant_time_comparison(
    harness: AuthHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(_digest: bytes, kept: bytes) -> bool:
        compared.append(kept)
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    entry = harness.file.entries()["alice"]
    harness.ask(new_token("alice"))
    harness.ask(new_token("nobody"))
    assert compared == [entry.hash.digest, DUMMY_HASH.digest]


def test_failed_tokens_do_not_lock_out_a_good_token(harness: AuthHarness) -> None:
    for number in range(1000):
        assert isinstance(harness.ask(f"cartd_alice.{number}"), Unauthenticated)
    assert harness.ask(harness.tokens["alice"]) == ALICE


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer nodot", "Basic !", "Basic YWxpY2U=", "Digest a=b", "\0"]
)
def test_a_malformed_authorization_header_is_refused(harness: AuthHarness, header: str) -> None:
    asked = harness.authenticate(request("192.0.2.1", authorization=header))
    assert isinstance(asked, Unauthenticated)


def test_a_changed_token_file_is_reloaded_at_the_next_poll(harness: AuthHarness) -> None:
    harness.file.revoke("bob")
    carol = harness.file.add("carol", admin=False)
    assert isinstance(harness.ask(carol), Unauthenticated)
    harness.poll()
    assert isinstance(harness.ask(harness.tokens["bob"]), Unauthenticated)
    assert harness.ask(harness.tokens["alice"]) == ALICE
    assert harness.ask(carol) == User("carol")


SPOILT = {
    "broken": lambda path: path.write_text("alice\n"),
    "gone": Path.unlink,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "no text": lambda path: path.write_bytes(b"\xff"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_an_unreadable_token_file_fails_closed_after_the_grace(
    harness: AuthHarness, spoil: Callable[[Path], object]
) -> None:
    alice, path = harness.tokens["alice"], harness.file.path
    good = path.read_text()
    spoil(path)
    with capturedLogs() as logged:
        harness.poll()
        assert harness.ask(alice) == ALICE
        harness.poll_for(int(GRACE))
        refused = harness.ask(alice)
        assert isinstance(refused, Unavailable)
        assert refused.code == 503
        assert harness.authenticator.headers(refused) == []
        assert harness.ask("cartd_nobody.x") is not None
        [said] = [event for event in logged if event["log_level"] is LogLevel.error]
        assert formatEvent(said).startswith(f"{path}: ")
        assert "NO TOKEN IS ACCEPTED" in formatEvent(said)
        harness.poll_for(int(LOG_INTERVAL) - 1)
        assert len(errors(logged)) == 1
        harness.poll_for(1)
        assert len(errors(logged)) == 2
        if path.is_dir():
            path.rmdir()
        path.write_text(good.replace("alice admin", "alice user"))
        harness.poll_for(1)
        assert harness.ask(alice) == User("alice")
        assert formatEvent(logged[-1]) == f"{path} is readable again: tokens are accepted"
    assert alice not in repr(logged)


def errors(logged: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in logged if event["log_level"] is LogLevel.error]


def test_a_poll_that_hangs_fails_closed_after_the_grace(harness: AuthHarness) -> None:
    alice = harness.tokens["alice"]
    with capturedLogs() as logged:
        looking = Deferred.fromCoroutine(harness.authenticator.poll())
        harness.clock.advance(GRACE - 1)
        assert harness.ask(alice) == ALICE
        harness.clock.advance(1)
        assert isinstance(harness.ask(alice), Unavailable)
        [said] = errors(logged)
        assert f"{harness.file.path}: the disk does not respond" in said
        harness.threads.run_all()
        assert looking.called
        assert harness.ask(alice) == ALICE


def test_a_token_file_replaced_repeatedly_stays_valid(harness: AuthHarness) -> None:
    """Also if every second poll sees a file that is being replaced."""
    alice, path = harness.tokens["alice"], harness.file.path
    good = path.read_text()
    with capturedLogs() as logged:
        for number in range(100):
            path.write_text("ali")
            harness.poll_for(int(GRACE) - 1)
            assert harness.ask(alice) == ALICE
            path.write_text(f"{good}# {number}\n")
            harness.poll_for(1)
            assert harness.ask(alice) == ALICE
    assert errors(logged) == []


def test_a_token_file_read_while_it_changes_is_not_used(
    harness: AuthHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, entries = harness.file.path, TokenFile.entries
    path.write_text("")

    def changed_meanwhile(file: TokenFile) -> Mapping[str, Entry]:
        found = entries(file)
        path.write_text("# more\n" + path.read_text())
        return found

    monkeypatch.setattr(TokenFile, "entries", changed_meanwhile)
    harness.poll()
    assert harness.ask(harness.tokens["alice"]) == ALICE
    monkeypatch.undo()
    harness.poll()
    assert isinstance(harness.ask(harness.tokens["alice"]), Unauthenticated)


def test_a_broken_token_file_rejects_only_admins_of_the_proxy(
    tmp_path: Path,
) -> None:
    harness = AuthHarness(
        tmp_path, "proxy_header = X-User\ntrusted_proxies = unix\ntoken_file = {file}"
    )
    harness.file.path.write_text("x\n")
    harness.poll_for(int(GRACE) + 1)
    assert isinstance(harness.authenticate(request("unix", x_user="alice")), Unavailable)
    assert harness.authenticate(request("unix", x_user="bob")) == User("bob")
    assert harness.authenticate(request("unix", x_user="dora")) == User("dora")


def test_a_broken_token_file_stops_the_start(tmp_path: Path) -> None:
    harness = AuthHarness(tmp_path)
    harness.file.path.write_text("x\n")
    with pytest.raises(ConfigError, match="tokens: line 1: must be NAME ROLE HASH"):
        TokenRegistry(harness.file, harness.threads, harness.clock)


def test_no_secret_is_kept_in_memory(harness: AuthHarness) -> None:
    token = harness.tokens["alice"]
    harness.ask(token)
    kept = repr(vars(harness.authenticator)) + repr(vars(harness.authenticator._registry))
    assert "alice" in kept
    assert token.rpartition(".")[2] not in kept
