"""The guard: whom it lets in, however many others fail, and the file that it goes by."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from cartd.auth.roster import Roster
from cartd.auth.tokens import UNKNOWN, new_token
from cartd.errors import ConfigError, Unidentified
from cartd.model import User
from tests.guarding import Guarding, failure, request

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
        assert str(refused) == "The name or the token is wrong"


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
    assert guarding.look().called
    assert isinstance(guarding.ask(guarding.tokens["bob"]), Unidentified)
    assert guarding.ask(guarding.tokens["alice"]) == ALICE
    assert guarding.ask(carol) == User("carol")


def test_a_broken_file_keeps_the_old_one_until_it_is_right(guarding: Guarding) -> None:
    token = guarding.tokens["alice"]
    good = guarding.file.path.read_text()
    for spoil in (lambda: guarding.file.path.write_text("alice\n"), guarding.file.path.unlink):
        spoil()
        for _ in range(2):
            told = failure(guarding.look())
            assert isinstance(told, ConfigError)
            assert str(told).endswith("; the tokens read before stay valid")
        assert guarding.ask(token) == ALICE
    guarding.file.path.write_text(good.replace("alice admin", "alice user"))
    assert guarding.look().called
    assert guarding.ask(token) == User("alice")


def test_a_broken_file_stops_the_start(tmp_path: Path) -> None:
    guarding = Guarding(tmp_path)
    guarding.file.path.write_text("x\n")
    with pytest.raises(ConfigError, match="tokens: line 1: is not NAME ROLE HASH"):
        Roster(guarding.file, guarding.threads)


def test_of_a_secret_nothing_is_kept(guarding: Guarding) -> None:
    token = guarding.tokens["alice"]
    guarding.ask(token)
    kept = repr(vars(guarding.guard)) + repr(vars(guarding.guard._roster))
    assert "alice" in kept
    assert token.rpartition(".")[2] not in kept
