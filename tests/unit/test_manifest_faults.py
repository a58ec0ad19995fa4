"""The faults of an invalid manifest: many of them, by JSON pointer, with bounded work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd import manifest
from cartd.errors import Fault, InvalidManifest
from cartd.manifest import MAX_FAULTS, parse

SHA1 = hashlib.sha1(b"content").hexdigest()


def entry(**changed: Any) -> dict[str, Any]:
    return {"id": "1", "path": "a", "hashtype": "sha1", "hashsum": SHA1} | changed


def entries(count: int) -> list[dict[str, Any]]:
    return [entry(path=f"file{n}") for n in range(count)]


def body(posted: list[Any], **more: Any) -> bytes:
    return json.dumps({"fileids": posted} | more).encode()


def faults(data: bytes, *, require_hashsum: bool = False) -> tuple[Fault, ...]:
    with pytest.raises(InvalidManifest) as caught:
        parse(data, require_hashsum=require_hashsum)
    found = caught.value.faults
    place, _, detail = str(caught.value).partition(": ")
    # The first one is that of the message.
    assert found[0].detail == detail
    assert found[0].pointer.rpartition("/")[2] == re.split(r"[].[]+", place.rstrip("]"))[-1] or (
        place == "manifest" and found[0].pointer == "#"
    )
    assert len(set(found)) == len(found) <= MAX_FAULTS
    return found


def pointers(data: bytes, **options: bool) -> list[str]:
    return [fault.pointer for fault in faults(data, **options)]


WHOLE = {
    "no JSON": (b"{]", "#"),
    "no object": (b"[]", "#"),
    "not UTF-8": (b'{"fileids": [], "x": "\xff"}', "#/x"),
    "no entries": (b"{}", "#/fileids"),
    "a number": (b'{"fileids": 1}', "#/fileids"),
    "bundle": (b'{"fileids": [], "bundle": "yes"}', "#/bundle"),
    "too deep": (b'{"fileids": ' + b"[" * 100_000, "#"),
}


@pytest.mark.parametrize(("data", "pointer"), WHOLE.values(), ids=WHOLE)
def test_fault_of_the_whole_is_one(data: bytes, pointer: str) -> None:
    assert pointers(data) == [pointer]


def test_every_key_of_every_entry_is_checked() -> None:
    posted = [
        entry(),
        entry(id="", path="../b", hashsum="xyz"),
        7,
        {},
        entry(path="c", id="\ud800"),
        entry(path="", hashtype="crc32"),
    ]
    assert set(pointers(body(posted[:4]))) == {
        "#/fileids/1/id",
        "#/fileids/1/path",
        "#/fileids/1/hashsum",
        "#/fileids/2",
        "#/fileids/3/id",
    }
    assert pointers(body(posted)) == ["#/fileids/4/id"]  # is not JSON as a whole
    assert set(pointers(body([posted[0], posted[5]]))) == {
        "#/fileids/1/path",
        "#/fileids/1/hashtype",
    }


def test_details_do_not_repeat_the_place() -> None:
    [fault] = faults(body([entry(id="")]))
    assert fault == Fault("#/fileids/0/id", "is empty")


def test_hash_sums_are_missing_only_if_required() -> None:
    posted = [entry(hashsum=""), entry(path="b"), entry(path="c", hashsum="")]
    assert pointers(body(posted), require_hashsum=True) == [
        "#/fileids/0/hashsum",
        "#/fileids/2/hashsum",
    ]
    parse(body(posted))


def test_faults_after_the_first_are_in_order() -> None:
    posted = entries(30_000)
    wrong = [12_000, 12_001, 5, 29_999, 8_191, 8_192]
    for at in wrong:
        posted[at]["path"] = ".."
    assert pointers(body(posted)) == [f"#/fileids/{at}/path" for at in sorted(wrong)]


def test_the_first_fault_is_that_of_pacifica_even_if_another_comes_before() -> None:
    posted = entries(5)
    posted[0]["id"] = ""
    posted[4]["path"] = ".."  # paths are checked before ids
    assert pointers(body(posted)) == ["#/fileids/4/path", "#/fileids/0/id"]


@pytest.mark.parametrize("count", [MAX_FAULTS - 1, MAX_FAULTS, MAX_FAULTS + 1, 10_000])
def test_at_most_a_hundred_are_told(count: int) -> None:
    found = pointers(body([entry(id="") for _ in range(count)]))
    assert found == [f"#/fileids/{at}/id" for at in range(min(count, MAX_FAULTS))]


def test_all_colliding_paths_are_told() -> None:
    names = ["a", "b", "a", "c", "b/x", "c/d/e", "a", "f/g", "f"]
    found = {fault.pointer: fault.detail for fault in faults(body([entry(path=n) for n in names]))}
    assert found == {
        "#/fileids/2/path": "is the same as that of fileids[0]",
        "#/fileids/6/path": "is the same as that of fileids[0]",
        "#/fileids/4/path": "is below the file of fileids[1]",
        "#/fileids/5/path": "is below the file of fileids[3]",
        "#/fileids/8/path": "is a directory in the path of fileids[7]",
    }
    many = [entry(path=f"d{n}{below}") for n in range(500) for below in ("", "/x")]
    assert len(faults(body(many))) == MAX_FAULTS
    assert len(faults(body([entry() for _ in range(500)]))) == MAX_FAULTS


def work(data: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return how many entries were checked while ``data`` was parsed, and by how many calls."""
    checked = calls = 0

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def count(posted: list[Any], *rest: Any) -> Any:
            nonlocal checked, calls
            checked += len(posted)
            calls += 1
            return original(posted, *rest)

        return count

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "_paths", counting(manifest._paths))
        faults(data)
    return checked, calls


def test_work_is_bounded_however_the_faults_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 120_000
    for step in (1, 1000, 4096, 50_000, count - 1):
        posted = entries(count)
        for at in range(0, count, step):
            posted[at]["path"] = ".."
        checked, calls = work(body(posted), monkeypatch)
        # Each batch when it is parsed and when it is divided, and a little more for each fault.
        assert checked <= 3 * count + MAX_FAULTS * 1000
        assert calls <= MAX_FAULTS * 50


near = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["1", "", "..", "a/../b", 1, None]),
        "path": st.sampled_from(["a", "b", "a/b", "", "..", 1]),
        "hashtype": st.sampled_from(["sha1", "md5", "none", 1]),
        "hashsum": st.sampled_from([SHA1, "", "x", 1]),
    },
)


@given(st.lists(near | st.just(entry()) | st.integers(), max_size=12), st.booleans())
def test_each_fault_is_one_that_its_entry_has_alone(posted: list[Any], strict: bool) -> None:
    try:
        parse(body(posted), require_hashsum=strict)
    except InvalidManifest:
        found = faults(body(posted), require_hashsum=strict)
    else:
        return
    for fault in found:
        matched = re.fullmatch(r"#/fileids/(\d+)(/\w+)?", fault.pointer)
        assert matched
        if "fileids[" in fault.detail:
            continue  # of two entries
        alone = faults(body([posted[int(matched[1])]]), require_hashsum=strict)
        assert Fault(f"#/fileids/0{matched[2] or ''}", fault.detail) in alone
