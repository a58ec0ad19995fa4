"""Untrusted text in messages: one line, printable and not too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import CartdError, InvalidInput, escape, one_line


@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("a/b c", "a/b c"),
        ("Ünï/日本", "Ünï/日本"),
        ("a\\b", "a\\b"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[2J\x07\x7f\x85", "\\x1b[2J\\x07\\x7f\\x85"),
        ("\u202egpj.exe\u2028", "\\u202egpj.exe\\u2028"),
        ("\ud800", "\\ud800"),
        ("'\n\"", "'\\n\""),
    ],
)
def test_escape_replaces_only_unprintable_characters(name: str, as_shown: str) -> None:
    assert escape(name) == as_shown


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" no\x07such\n file\u202e ", "no such file"),
        ("", ""),
        ("\x1b" * 1000, ""),
        ("y" * 500, "y" * 200),
    ],
)
def test_one_line_drops_unprintable_characters(text: str, cleaned: str) -> None:
    assert one_line(text) == cleaned


@given(st.text(), st.integers(1, 50))
def test_results_are_printable(text: str, limit: int) -> None:
    assert escape(text).isprintable() and one_line(text, limit).isprintable()
    assert len(one_line(text, limit)) <= limit


def test_error_messages_are_printable() -> None:
    assert str(InvalidInput("no \x1b[2J\n")) == "no \\x1b[2J\\n"
    assert str(CartdError()) == ""
