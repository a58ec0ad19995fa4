"""Tokens of forms: accepted from the user they were issued to, for a time, and nothing else."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import Problem
from cartd.http.form_tokens import LIFETIME, ForgedForm, FormTokens

NOW = 1_800_000_123.5
KEY = bytes(32)


def tokens(now: float = NOW, key: bytes = KEY) -> FormTokens:
    return FormTokens(key, lambda: now)


@pytest.mark.parametrize("user", [None, "", "alice", "-", "\xe9"])
def test_token_is_accepted_until_it_ends(user: str | None) -> None:
    token = tokens().issue(user)
    for later in (0.0, LIFETIME / 2, LIFETIME):
        tokens(NOW + later).check(token, user)
    with pytest.raises(ForgedForm):
        tokens(NOW + LIFETIME + 3601).check(token, user)


def test_token_of_another_user_is_rejected() -> None:
    users = (None, "", "alice", "alic", "bob", "-alice", "+")
    for mine in users:
        for other in users:
            if mine != other:
                with pytest.raises(ForgedForm):
                    tokens().check(tokens().issue(mine), other)


def test_token_of_another_key_is_rejected() -> None:
    with pytest.raises(ForgedForm):
        tokens(key=b"other").check(tokens().issue("alice"), "alice")


def test_every_changed_byte_is_noticed() -> None:
    token = base64.urlsafe_b64decode(tokens().issue("alice"))
    for at in range(len(token)):
        changed = bytes([*token[:at], token[at] ^ 1, *token[at + 1 :]])
        with pytest.raises(ForgedForm):
            tokens().check(base64.urlsafe_b64encode(changed).decode(), "alice")


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_anything_else_is_rejected(token: str) -> None:
    with pytest.raises(ForgedForm) as raised:
        tokens().check(token, None)
    assert (raised.value.code, raised.value.problem) == (403, Problem.CROSS_SITE)


def test_page_that_is_loaded_again_has_the_same_token() -> None:
    assert tokens(NOW).issue("alice") == tokens(NOW + 1).issue("alice")
