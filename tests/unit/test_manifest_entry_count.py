"""The number of entries of a manifest is checked before any of them is decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd import manifest_text
from cartd.errors import TooLarge
from cartd.manifest import parse
from cartd.manifest_text import check_entries

ENTRY = {"id": 1, "path": "a", "hashtype": "md5", "hashsum": ""}


def has_more(body: bytes, most: int) -> bool:
    try:
        check_entries(body, most)
    except TooLarge as error:
        assert error.limit == "server.max_entries"
        assert str(error) == f"fileids: has more than {most} entries (server.max_entries)"
        return True
    return False


def posted(*entries: Any, **more: Any) -> bytes:
    return json.dumps({"a": [1], **more, "fileids": entries, "b": [[2, 3, {"c": [4, 5]}]]}).encode()


ENTRIES: dict[str, Any] = {
    "a plain one": ENTRY,
    "commas and brackets in strings": {**ENTRY, "path": "a,b],{c}[,"},
    "quotes in strings": {**ENTRY, "path": '"', "id": '",","'},
    "backslashes in strings": {**ENTRY, "path": "\\", "id": '\\",\\\\",\n\\'},
    "more keys": {**ENTRY, "x": [1, 2, [3, {"y": [4, 5]}]], "z": {"a": 1, "b": 2}},
    "none at all": {},
    "a number": 0,
    "a string": "a,b",
    "a list": [1, 2, 3],
    "letters outside ASCII": {**ENTRY, "path": "ü,ü"},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_entries_are_counted_whatever_is_in_them(entry: Any, number: int, ascii_only: bool) -> None:
    body = json.dumps({"fileids": [entry] * number}, ensure_ascii=ascii_only).encode()
    assert not has_more(body, number)
    assert number == 1 or has_more(body, number - 1)


texts = st.text(alphabet='\\",[]{}a')
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner),
    max_leaves=12,
)


@given(st.lists(values, min_size=2, max_size=6), st.integers(1, 40))
def test_any_entries_are_counted_wherever_the_blocks_end(entries: list[Any], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_text, "BLOCK", block)
        assert_counted(entries)


def assert_counted(entries: list[Any]) -> None:
    body = json.dumps({"fileids": entries}).encode()
    assert not has_more(body, len(entries))
    assert has_more(body, len(entries) - 1)


def test_other_lists_below_and_beside_do_not_count() -> None:
    assert not has_more(posted(ENTRY, ENTRY), 2)
    assert has_more(posted(ENTRY, ENTRY), 1)
    assert not has_more(json.dumps({"fileids": [{"x": list(range(50))}]}).encode(), 2)
    assert not has_more(posted(ENTRY, ENTRY, keys=dict.fromkeys("abcdefgh")), 2)


@pytest.mark.parametrize("body", [b"", b"]", b"}}}]]]", b'"', b'{"fileids":[', b"\xff,[,{,\\"])
def test_what_is_no_manifest_is_left_to_others(body: bytes) -> None:
    assert not has_more(body, 3)


def test_few_commas_skip_the_detailed_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest_text, "_longest_list", None)
    check_entries(posted(*[ENTRY] * 100), 1000)


def test_too_many_entries_are_rejected_before_other_faults() -> None:
    assert len(parse(posted(ENTRY), max_entries=1).entries) == 1
    with pytest.raises(TooLarge):
        parse(posted(0, 0), max_entries=1)
