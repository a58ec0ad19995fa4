"""The guard: what it remembers, what it forgets, and how much it checks at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError

from cartd.auth import guard as guard_module
from cartd.auth.checks import AT_ONCE, MOST, MOST_OF_ONE
from cartd.auth.roster import Roster
from cartd.errors import ConfigError, TooMany, Unavailable, Unidentified
from cartd.model import User
from tests.guarding import Guarding, failure, request, result

ALICE = User("alice", admin=True)


pytest_plugins = ("tests.cheap_hashes",)
pytestmark = pytest.mark.usefixtures("cheap_hashes")


@pytest.fixture
def guarding(tmp_path: Path) -> Guarding:
    return Guarding(tmp_path)


def test_a_token_is_checked_once_and_known_from_then_on(guarding: Guarding) -> None:
    token = guarding.tokens["alice"]
    asked = guarding.ask(token)
    assert guarding.knows(token) is None
    guarding.threads.let_all_go()
    assert result(asked) == guarding.knows(token) == ALICE
    assert guarding.threads.made == 1
    assert guarding.knows(token + "x") is None


def test_a_wrong_secret_is_checked_once_and_an_unknown_name_like_it(guarding: Guarding) -> None:
    for token in ("alice.x", "nobody.x", guarding.tokens["alice"].replace("alice", "bob")):
        made = guarding.threads.made
        asked = guarding.ask(token)
        guarding.threads.let_all_go()
        assert isinstance(wrong := failure(asked), Unidentified)
        assert str(wrong) == "The name or the token is wrong"
        again = guarding.ask(token)
        assert str(failure(again)) == str(wrong)
        assert guarding.threads.made == made + 1
        assert guarding.knows(token) is None


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer nodot", "Basic !", "Basic YWxpY2U=", "Digest a=b", "\0"]
)
def test_what_names_nobody_is_refused_without_a_check(guarding: Guarding, header: str) -> None:
    assert isinstance(
        failure(guarding.identify(request("192.0.2.1", authorization=header))), Unidentified
    )
    assert guarding.threads.made == 0


def test_many_who_come_with_one_new_token_wait_for_one_check(guarding: Guarding) -> None:
    asked = [guarding.ask(guarding.tokens["bob"]) for _ in range(MOST + 1)]
    asked[0].addErrback(lambda failed: failed.trap(CancelledError))
    asked[0].cancel()
    guarding.threads.let_all_go()
    assert guarding.threads.made == 1
    assert {result(one) for one in asked[1:]} == {User("bob")}


def test_few_are_checked_at_once_and_who_comes_from_elsewhere_has_a_turn(
    guarding: Guarding,
) -> None:
    wrong = [guarding.ask(f"alice.{number}") for number in range(MOST_OF_ONE)]
    honest = guarding.ask(guarding.tokens["bob"], "192.0.2.2")
    assert len(guarding.threads.held) == AT_ONCE
    for _ in range(AT_ONCE + 2):
        guarding.threads.let_one_go()
        assert len(guarding.threads.held) <= AT_ONCE
    assert result(honest) == User("bob")
    guarding.threads.let_all_go()
    assert {str(failure(one)) for one in wrong} == {"The name or the token is wrong"}


def test_one_address_may_have_some_waiting_and_all_together_some_more(guarding: Guarding) -> None:
    waiting = [
        guarding.ask(f"alice.{number}", f"192.0.2.{number // MOST_OF_ONE}")
        for number in range(MOST)
    ]
    assert isinstance(failure(guarding.ask("alice.x", "192.0.2.0")), TooMany)
    assert isinstance(failure(guarding.ask("alice.x", "192.0.2.99")), Unavailable)
    guarding.threads.let_all_go()
    assert {type(failure(one)) for one in waiting} == {Unidentified}
    asked = guarding.ask(guarding.tokens["bob"], "192.0.2.0")
    guarding.threads.let_all_go()
    assert result(asked) == User("bob")


def test_a_client_that_leaves_lets_go_of_its_place_but_not_of_a_thread(guarding: Guarding) -> None:
    asked = [guarding.ask(f"alice.{number}") for number in range(AT_ONCE + 1)]
    for one in asked:
        one.addErrback(lambda failed: failed.trap(CancelledError))
        one.cancel()
    after = guarding.ask(guarding.tokens["bob"])
    assert guarding.threads.made == AT_ONCE
    guarding.threads.let_all_go()
    assert result(after) == User("bob")
    assert guarding.threads.made == AT_ONCE + 1


def test_a_flood_of_wrong_secrets_makes_nobody_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "MOST_KNOWN", 2)
    monkeypatch.setattr(guard_module, "MOST_WRONG", 2)
    guarding = Guarding(tmp_path)
    for token in [*guarding.tokens.values(), "a.1", "a.2", "a.3"]:
        guarding.ask(token).addErrback(lambda _: None)
        guarding.threads.let_all_go()
    assert guarding.knows(guarding.tokens["alice"]) == ALICE
    assert guarding.knows(guarding.tokens["bob"]) == User("bob")
    made = guarding.threads.made
    guarding.ask("a.3").addErrback(lambda _: None)
    assert guarding.threads.made == made
    guarding.ask("a.1").addErrback(lambda _: None)
    guarding.threads.let_all_go()
    assert guarding.threads.made == made + 1


def test_a_change_of_the_file_counts_at_the_next_look(guarding: Guarding) -> None:
    for token in guarding.tokens.values():
        guarding.ask(token)
        guarding.threads.let_all_go()
    guarding.file.revoke("bob")
    carol = guarding.file.add("carol", admin=False)
    early = guarding.ask(carol)
    guarding.threads.let_all_go()
    assert isinstance(failure(early), Unidentified)
    assert guarding.look().called
    assert guarding.knows(guarding.tokens["bob"]) is None
    asked = [guarding.ask(token) for token in (*guarding.tokens.values(), carol)]
    guarding.threads.let_all_go()
    assert result(asked[0]) == ALICE
    assert isinstance(failure(asked[1]), Unidentified)
    assert result(asked[2]) == User("carol")


def test_a_check_that_a_change_overtakes_is_made_again(guarding: Guarding) -> None:
    revoked = guarding.ask(guarding.tokens["bob"])
    [check] = guarding.threads.held
    guarding.threads.held.clear()
    guarding.file.revoke("bob")
    assert guarding.look().called
    check()
    guarding.threads.let_all_go()
    assert isinstance(failure(revoked), Unidentified)
    assert guarding.knows(guarding.tokens["bob"]) is None


def test_a_look_at_a_file_that_did_not_change_forgets_nobody(guarding: Guarding) -> None:
    guarding.ask(guarding.tokens["alice"])
    guarding.threads.let_all_go()
    assert guarding.look().called
    assert guarding.knows(guarding.tokens["alice"]) == ALICE


def test_a_broken_file_keeps_the_old_one_until_it_is_right(guarding: Guarding) -> None:
    token = guarding.tokens["alice"]
    good = guarding.file.path.read_text()
    for spoil in (lambda: guarding.file.path.write_text("alice\n"), guarding.file.path.unlink):
        spoil()
        for _ in range(2):
            told = failure(guarding.look())
            assert isinstance(told, ConfigError)
            assert str(told).endswith("; the tokens read before stay valid")
        asked = guarding.ask(token)
        guarding.threads.let_all_go()
        assert result(asked) == ALICE
    guarding.file.path.write_text(good.replace("alice admin", "alice user"))
    assert guarding.look().called
    assert guarding.knows(token) is None
    asked = guarding.ask(token)
    guarding.threads.let_all_go()
    assert result(asked) == User("alice")


def test_a_broken_file_stops_the_start(tmp_path: Path) -> None:
    guarding = Guarding(tmp_path)
    guarding.file.path.write_text("x\n")
    with pytest.raises(ConfigError, match="tokens: line 1: is not NAME ROLE HASH"):
        Roster(guarding.file, guarding.threads)


def test_of_a_secret_nothing_is_kept(guarding: Guarding) -> None:
    token = guarding.tokens["alice"]
    guarding.ask(token)
    guarding.threads.let_all_go()
    kept = repr(vars(guarding.guard)) + repr(vars(guarding.guard._known))
    assert "alice" in kept
    assert token.rpartition(".")[2] not in kept
