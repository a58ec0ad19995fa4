"""Manifests: what is accepted, how it is normalised, and which error the rest gets."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import InvalidInput, InvalidManifest
from cartd.manifest import Entry, Manifest, parse
from cartd.model import CartFormat, check_uid

SHA1 = hashlib.sha1(b"content").hexdigest()


def entry(**changed: Any) -> dict[str, Any]:
    return {"id": "1", "path": "a", "hashtype": "sha1", "hashsum": SHA1} | changed


def body(*entries: Any, **more: Any) -> bytes:
    return json.dumps({"fileids": entries} | more).encode()


def paths(manifest: Manifest) -> list[str]:
    return [entry.path for entry in manifest.entries]


def refusal(data: bytes, *, require_hashsum: bool = False) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(data, require_hashsum=require_hashsum)
    return str(caught.value)


# --- accepted ---------------------------------------------------------------------------------


def test_a_manifest_is_read_in_its_order() -> None:
    manifest = parse(
        b'{"fileids": [{"id": "103", "path": "b/c.txt", "hashtype": "md5",'
        b' "hashsum": "9a0364b9e99bb480dd25e1f0284c8555"},'
        b' {"id": 104, "path": "/b/a.txt", "hashtype": "sha256", "hashsum": ""}]}'
    )
    assert list(manifest.entries) == [
        Entry("103", "b/c.txt", "md5", "9a0364b9e99bb480dd25e1f0284c8555"),
        Entry("104", "b/a.txt", "sha256", ""),
    ]
    assert manifest.bundle is None


def test_a_manifest_may_be_empty() -> None:
    assert list(parse(b'{"fileids": []}').entries) == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, None), ({"bundle": None}, None), ({"bundle": True}, True), ({"bundle": False}, False)],
    ids=["absent", "null", "true", "false"],
)
def test_bundle_is_what_the_client_sends(more: dict[str, Any], expected: bool | None) -> None:
    assert parse(body(entry(), **more)).bundle is expected


def test_other_keys_are_read_past() -> None:
    assert parse(body(entry(size=3, more={"a": [1]}), comment="x")) == parse(body(entry()))


def test_a_byte_order_mark_is_read_past() -> None:
    assert parse(b"\xef\xbb\xbf" + body(entry())) == parse(body(entry()))


def test_the_last_of_duplicate_keys_counts() -> None:
    data = body(entry()).replace(b'"path": "a"', b'"path": "first", "path": "last"')
    assert paths(parse(data)) == ["last"]


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/a", "a"),
        ("///a/b", "a/b"),
        ("a//b", "a/b"),
        ("./a/./b", "a/b"),
        ("a/", "a"),
        ("a/.", "a"),
        ("..a/...", "..a/..."),
        ("a\\..\\b", "a\\..\\b"),
        ("a\nb", "a\nb"),
        ("ü/日本/😀", "ü/日本/😀"),
        ("é" * 127, "é" * 127),
        ("x" * 255, "x" * 255),
        ("/".join(["y" * 191] * 16), "/".join(["y" * 191] * 16)),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_path_is_normalised(path: str, normal: str) -> None:
    assert paths(parse(body(entry(path=path)))) == [normal]


@pytest.mark.parametrize(
    ("archive_id", "text"),
    [
        (0, "0"),
        (-0, "0"),
        (2**64, "18446744073709551616"),
        ("007", "007"),
        ("a/b.c", "a/b.c"),
        ("50%", "50%"),
        ("a..b", "a..b"),
        ("...", "..."),
        ("\u00fc?#", "\u00fc?#"),
        ("x" * 1024, "x" * 1024),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_an_id_is_kept_as_text(archive_id: int | str, text: str) -> None:
    assert [item.archive_id for item in parse(body(entry(id=archive_id))).entries] == [text]


def test_a_hash_sum_in_capitals_is_the_same_hash_sum() -> None:
    assert parse(body(entry(hashsum=SHA1.upper()))) == parse(body(entry()))


def test_a_hash_sum_may_be_empty_unless_it_is_required() -> None:
    data = body(entry(path="b"), entry(hashsum=""))
    assert [item.hash_sum for item in parse(data).entries][1] == ""
    assert refusal(data, require_hashsum=True).startswith("fileids[1].hashsum: is empty")
    assert parse(body(entry()), require_hashsum=True) == parse(body(entry()))


# --- the fingerprint ----------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_normalised_manifest() -> None:
    plain = parse(body(entry(id="5", path="a/b"), entry(path="c"))).fingerprint
    other = body(
        entry(path="/a/./b", id=5, hashsum=SHA1.upper(), size=1), entry(path="c"), bundle=None
    )
    assert re.fullmatch("[0-9a-f]{64}", plain)
    assert parse(other).fingerprint == plain


@pytest.mark.parametrize(
    "other",
    [
        body(entry(path="b"), entry(path="a")),
        body(entry(path="a"), entry(path="b"), bundle=True),
        body(entry(path="a"), entry(path="b"), bundle=False),
        body(entry(path="a")),
        body(entry(path="a"), entry(path="b", id="2")),
        body(entry(path="a"), entry(path="b", hashsum="")),
        body(entry(path="a"), entry(path="b", hashtype="ripemd160")),
        body(entry(path='a","b'), entry(path="b")),
    ],
    ids=["order", "bundle", "no bundle", "fewer", "id", "hashsum", "hashtype", "quotes"],
)
def test_another_manifest_has_another_fingerprint(other: bytes) -> None:
    assert parse(other).fingerprint != parse(body(entry(path="a"), entry(path="b"))).fingerprint


# --- rejected ---------------------------------------------------------------------------------

NOT_A_MANIFEST: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "manifest: is not JSON: "),
    "cut": (b'{"fileids": [', "manifest: is not JSON: "),
    "more after the end": (body() + b"x", "manifest: is not JSON: trailing characters"),
    "UTF-16": (body().decode().encode("utf-16"), "manifest: is not UTF-8 (byte 0)"),
    "Latin-1 in a value": (b'{"fileids": [], "x": "\xfc"}', "x: is not UTF-8 (byte 22)"),
    "Latin-1 in a key": (b'{"fileids": [], "\xfc": 1}', "manifest: is not UTF-8 (byte 17)"),
    "cut character": (b'{"fileids": []}\xe2\x82', "manifest: is not UTF-8 (byte 15)"),
    "NaN": (b'{"fileids": [], "x": NaN}', "manifest: is not JSON: "),
    "lone surrogate": (
        b'{"fileids": [{"id": 1, "path": "\\ud800x\\u0041bcdefg", "hashtype": "sha1",'
        b' "hashsum": ""}]}',
        "fileids[0].path: contains a lone surrogate (\\ud800, byte 32), which is invalid Unicode",
    ),
    "second half of a pair alone": (
        b'{"fileids": [{"id": 1, "path": "caf\\udce9.dat", "hashtype": "sha1", "hashsum": ""}]}',
        "fileids[0].path: contains a lone surrogate (\\udce9, byte 35), which is invalid Unicode",
    ),
    "lone surrogate at a string's end": (
        b'{"fileids": [{"id": 1, "path": "a\\ud83d", "hashtype": "sha1", "hashsum": ""}]}',
        "fileids[0].path: contains a lone surrogate (\\ud83d, byte 33), which is invalid Unicode",
    ),
    "lone surrogate in a key that is ignored": (
        b'{"fileids": [], "x": {"y": "\\ud800"}}',
        "x: contains a lone surrogate (\\ud800, byte 28), which is invalid Unicode",
    ),
    "lone surrogate in a name of a key": (
        b'{"fileids": [{"\\ud800": 1}]}',
        "fileids[0]: contains a lone surrogate (\\ud800, byte 15), which is invalid Unicode",
    ),
    "pairs and two backslashes before a lone surrogate": (
        b'{"fileids": [], "x": "\\ud83d\\ude00\\\\ud800", "y": "\\ud83d\\ude00\\uDE00"}',
        "y: contains a lone surrogate (\\uDE00, byte 62), which is invalid Unicode",
    ),
    "lone surrogate in what is no JSON either": (
        b'{"fileids": [], "x": "\\ud800"',
        "manifest: is not JSON: ",
    ),
    "encoded lone surrogate": (
        b'{"fileids": [{"id": 1, "path": "\xed\xa0\x80", "hashtype": "sha1", "hashsum": ""}]}',
        "fileids[0].path: is not UTF-8 (byte 32)",
    ),
    "Latin-1 in a path": (
        b'{"fileids": [{"id": 1}, {"id": 2, "path": "caf\xe9.dat", "x": "\xe9"}]}',
        "fileids[1].path: is not UTF-8 (byte 46)",
    ),
    "nesting": (b'{"x": ' + b"[" * 100_000, "manifest: is nested too deeply"),
    "nesting in an entry": (
        b'{"fileids": [{"id": ' + b'{"a":' * 100_000,
        "manifest: is nested too deeply",
    ),
    "5,000 digits": (
        b'{"fileids": [{"id": %s, "path": "a", "hashtype": "sha1", "hashsum": ""}]}'
        % (b"1" * 5000),
        "fileids[0].id: integer value out of range",
    ),
    "an array": (b"[]", "manifest: expected object, got array"),
    "a string": (b'"fileids"', "manifest: expected object, got str"),
    "no fileids": (b'{"bundle": true}', "fileids: is missing"),
    "fileids null": (b'{"fileids": null}', "fileids: expected array, got null"),
    "fileids object": (b'{"fileids": {}}', "fileids: expected array, got object"),
    "bundle number": (b'{"fileids": [], "bundle": 1}', "bundle: expected bool | null, got int"),
    "bundle text": (
        b'{"fileids": [], "bundle": "on"}',
        "bundle: expected bool | null, got str",
    ),
}


@pytest.mark.parametrize(("data", "message"), NOT_A_MANIFEST.values(), ids=list(NOT_A_MANIFEST))
def test_invalid_manifests_are_rejected(data: bytes, message: str) -> None:
    assert refusal(data).startswith(message)


def test_invalid_utf8_is_found_behind_the_first_mebibyte() -> None:
    # The block before ends in the middle of a character.
    before = b'{"x": "'
    data = before + b"y" * (2**20 - len(before) - 1) + "ü".encode() + b"\xff" + b'", "fileids": []}'
    assert refusal(data) == f"x: is not UTF-8 (byte {2**20 + 1})"


@given(
    st.lists(
        st.sampled_from(["\\ud83d", "\\ude00", "\\\\", '\\"', "ud83d", "\\u0041", "x"]), max_size=12
    )
)
def test_only_lone_surrogates_are_rejected(
    pieces: list[str],
) -> None:
    text = "".join(pieces)
    said = json.loads(f'"{text}"')
    lone = any(0xD800 <= ord(character) <= 0xDFFF for character in said)
    data = b'{"fileids": [], "x": "%s"}' % text.encode()
    if lone:
        assert re.match(r"x: contains a lone surrogate \(\\u(d83d|de00), byte \d+\)", refusal(data))
    else:
        assert list(parse(data).entries) == []


MISSING = object()

BAD_ENTRY: dict[str, tuple[str, Any, str]] = {
    "id missing": ("id", MISSING, "id: is missing"),
    "id null": ("id", None, "id: expected int | str, got null"),
    "id true": ("id", True, "id: expected int | str, got bool"),
    "id fraction": ("id", 1.5, "id: expected int | str, got float"),
    "id of 4,000 digits": ("id", 10**3999, "id: is over 1024 bytes"),
    "id empty": ("id", "", "id: is empty"),
    "id with NUL": ("id", "a\0", "id: contains a NUL"),
    "id with encoded NUL": ("id", "a%00", "id: contains a NUL"),
    "id dots": ("id", "..", "id: has a segment '.' or '..'"),
    "id climbs": ("id", "a/../../b", "id: has a segment '.' or '..'"),
    "id begins with dot": ("id", "./a", "id: has a segment '.' or '..'"),
    "id ends with dots": ("id", "a/..", "id: has a segment '.' or '..'"),
    "id with backslashes": ("id", "a\\..\\b", "id: has a segment '.' or '..'"),
    "id percent-encoded": ("id", "%2e%2E", "id: has a segment '.' or '..'"),
    "id with encoded slash": ("id", "a%2f..%5Cb", "id: has a segment '.' or '..'"),
    "id too long": ("id", "x" * 1025, "id: is over 1024 bytes"),
    "id too long in bytes": ("id", "é" * 513, "id: is over 1024 bytes"),
    "path missing": ("path", MISSING, "path: is missing"),
    "path number": ("path", 3, "path: expected str, got int"),
    "path empty": ("path", "", "path: names no file"),
    "path root": ("path", "//", "path: names no file"),
    "path dot": ("path", "./.", "path: names no file"),
    "path with NUL": ("path", "a\0b", "path: contains a NUL"),
    "path dots": ("path", "..", "path: must not contain '..'"),
    "path climbs": ("path", "a/../b", "path: must not contain '..'"),
    "path climbs at once": ("path", "/../b", "path: must not contain '..'"),
    "path climbs at the end": ("path", "a/..", "path: must not contain '..'"),
    "component too long": ("path", "a/" + "x" * 256, "path: has a component over 255 bytes"),
    "component too long in bytes": ("path", "é" * 128, "path: has a component over 255 bytes"),
    "path too long": ("path", "x/" * 1537, "path: is over 3072 bytes"),
    "hashtype missing": ("hashtype", MISSING, "hashtype: is missing"),
    "hashtype number": ("hashtype", 1, "hashtype: expected str, got int"),
    "hashtype empty": ("hashtype", "", "hashtype: "),
    "hashtype unknown": ("hashtype", "crc32", "hashtype: 'crc32' is not a hash"),
    "hashtype with NUL": ("hashtype", "sha1\0", "hashtype: "),
    "hashtype of any length": ("hashtype", "shake_128", "hashtype: 'shake_128' has no fixed"),
    "hashsum missing": ("hashsum", MISSING, "hashsum: is missing"),
    "hashsum null": ("hashsum", None, "hashsum: expected str, got null"),
    "hashsum of another type": ("hashsum", "0" * 64, "hashsum: is not the 40 hex digits"),
    "hashsum short": ("hashsum", SHA1[:-2], "hashsum: is not the 40 hex digits"),
    "hashsum odd": ("hashsum", SHA1[:-1], "hashsum: is not the 40 hex digits"),
    "hashsum not hex": ("hashsum", "g" * 40, "hashsum: is not the 40 hex digits"),
    "hashsum with spaces": ("hashsum", SHA1[:-2] + "  ", "hashsum: is not the 40 hex digits"),
    "hashsum in other digits": ("hashsum", "\u0661" * 40, "hashsum: is not the 40 hex digits"),
}


@pytest.mark.parametrize("position", [0, 2, 5000])
@pytest.mark.parametrize(("key", "value", "message"), BAD_ENTRY.values(), ids=list(BAD_ENTRY))
def test_a_bad_entry_is_refused_by_its_place(
    position: int, key: str, value: Any, message: str
) -> None:
    entries = [entry(path=f"file{n}") for n in range(position + 2)]
    entries[position][key] = value
    if value is MISSING:
        del entries[position][key]
    assert refusal(body(*entries)).startswith(f"fileids[{position}].{message}")


def test_an_entry_that_is_no_object_is_refused_by_its_place() -> None:
    assert refusal(body(entry(), 7)) == "fileids[1]: expected object, got int"


def test_white_space_in_a_hash_sum_is_rejected() -> None:
    data = body(entry(hashsum=SHA1[:-2] + "  "), entry(path="b", hashsum=SHA1))
    assert refusal(data).startswith("fileids[0].hashsum: ")


def test_hash_sums_are_checked_by_their_own_type() -> None:
    md5 = hashlib.md5(b"content").hexdigest()
    good = body(entry(), entry(path="b", hashtype="md5", hashsum=md5))
    assert [item.hash_sum for item in parse(good).entries] == [SHA1, md5]
    crossed = body(entry(hashsum=md5), entry(path="b", hashtype="md5", hashsum=SHA1))
    assert refusal(crossed) == "fileids[0].hashsum: is not the 40 hex digits of its hashtype"


# --- path conflicts ---------------------------------------------------------------------------

CLASHES: dict[str, tuple[list[str], str]] = {
    "same": (["x", "a", "y", "a"], "fileids[3].path: is the same as that of fileids[1]"),
    "same when normal": (["a/b", "./a//b"], "fileids[1].path: is the same as that of fileids[0]"),
    "file, then directory": (
        ["x", "a", "a/b"],
        "fileids[2].path: is below the file of fileids[1]",
    ),
    "directory, then file": (
        ["a/b", "x", "a"],
        "fileids[2].path: is a directory in the path of fileids[0]",
    ),
    "far below": (
        ["a/b/c/d/e/f", "a/b"],
        "fileids[1].path: is a directory in the path of fileids[0]",
    ),
    "after a directory with a longer name": (
        ["long/name/x", "b", "b/c/d"],
        "fileids[2].path: is below the file of fileids[1]",
    ),
    "beside names that sort between": (
        ["d/a", "d/a.b", "d/a b/c", "d/a!", "d/a/z/y", "d/a0/x"],
        "fileids[4].path: is below the file of fileids[0]",
    ),
}


@pytest.mark.parametrize(("clashing", "message"), CLASHES.values(), ids=list(CLASHES))
def test_colliding_paths_are_rejected_with_both_positions(
    clashing: list[str], message: str
) -> None:
    assert refusal(body(*[entry(path=path) for path in clashing])) == message


def test_paths_that_share_a_name_prefix_do_not_collide() -> None:
    names = ["a/b", "a/bc", "a/b.c/d", "a/b c", "ab", "a!/b", "A/b/c"]
    assert paths(parse(body(*[entry(path=name) for name in names]))) == names


# A short alphabet, so that names collide often; '!' and '0' sort on either side of '/'.
names = st.lists(st.sampled_from(["a", "b", "a!", "a0"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(names, max_size=12))
def test_paths_clash_exactly_when_one_is_on_the_way_to_another(some: list[str]) -> None:
    clash = len(set(some)) < len(some) or any(
        other.startswith(name + "/") for name in some for other in some
    )
    data = body(*[entry(path=name) for name in some])
    if clash:
        assert re.fullmatch(r"fileids\[\d+\]\.path: .* fileids\[\d+\]", refusal(data))
    else:
        assert paths(parse(data)) == some


def test_paths_clash_however_many_there_are() -> None:
    # More than a batch, unsorted.
    names = [f"{n * 7919 % 10_007}/file" for n in range(10_007)]
    assert paths(parse(body(*[entry(path=name) for name in names]))) == names
    place = f"fileids[{names.index('9001/file')}]"
    message = f"fileids[10007].path: is the same as that of {place}"
    assert refusal(body(*[entry(path=name) for name in [*names, "9001/file"]])) == message
    message = f"fileids[10007].path: is a directory in the path of {place}"
    assert refusal(body(*[entry(path=name) for name in [*names, "9001"]])) == message


def test_very_deep_paths_cost_no_more_than_their_length() -> None:
    # All the ancestors of these, written out, would be 150 MB for each hundred of them.
    deep = "/x" * 1500
    manifest = parse(body(*[entry(path=f"{n}{deep}") for n in range(1000)]))
    assert len(manifest.entries) == 1000


# --- arbitrary input --------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
near_entries = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers() | st.text("ab./\\%2eE\0", max_size=8) | json_values,
        "path": st.text("ab./\\\0é\ud800", max_size=8) | json_values,
        "hashtype": st.sampled_from(["sha1", "md5", "shake_256"]) | json_values,
        "hashsum": st.sampled_from(["", SHA1, SHA1.upper(), SHA1[:32]]) | json_values,
    },
)


def parses_or_is_refused(data: bytes) -> None:
    try:
        manifest = parse(data)
    except InvalidInput as error:
        assert re.match(r"\w+(\[\d+\](\.\w+)?)?: .", str(error))
        return
    for item in manifest.entries:
        parts = item.path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in item.path
        assert max(len(part.encode()) for part in parts) <= 255
        assert re.fullmatch("[0-9a-f]*", item.hash_sum)
        assert item.archive_id.encode()


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    parses_or_is_refused(data)


@given(st.lists(near_entries | json_values, max_size=4), json_values)
def test_almost_valid_manifests_are_parsed_or_rejected(entries: list[Any], bundle: Any) -> None:
    parses_or_is_refused(body(*entries, bundle=bundle))


@given(st.data())
def test_a_damaged_manifest_is_parsed_or_refused(data: st.DataObject) -> None:
    whole = bytearray(body(entry(path="ü/\\"), entry(id=3, path="b", hashsum=""), bundle=True))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    parses_or_is_refused(bytes(whole))


# --- uids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", ["a", "0", "_a-b.c~", "~", "1" * 255, "a..b"])
def test_a_uid_of_unreserved_characters_is_accepted(uid: str) -> None:
    assert check_uid(uid) == uid


@pytest.mark.parametrize(
    "uid",
    [
        *["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "a\n", "\na", "a\0"],
        *["a%2e", "a+b", "a:b", "ä", "\u0661", "1" * 256],
    ],
    ids=ascii,
)
def test_any_other_uid_is_refused(uid: str) -> None:
    with pytest.raises(InvalidInput, match=r"^uid: "):
        check_uid(uid)


@pytest.mark.parametrize(
    ("posted", "expected"),
    [
        ({}, (CartFormat.TAR, None)),
        ({"format": "tar", "on_error": "fail"}, (CartFormat.TAR, None)),
        ({"format": "bag"}, (CartFormat.BAG, None)),
        ({"on_error": "partial"}, (CartFormat.TAR, 10)),
        ({"on_error": "partial", "max_failed": 3}, (CartFormat.TAR, 3)),
        ({"on_error": "partial", "max_failed": 99}, (CartFormat.TAR, 10)),
        ({"on_error": "partial", "max_failed": "25%"}, (CartFormat.TAR, 2)),
        ({"on_error": "partial", "max_failed": "100%"}, (CartFormat.TAR, 10)),
    ],
)
def test_format_and_partial_carts_are_parsed(
    posted: dict[str, object], expected: tuple[CartFormat, int | None]
) -> None:
    entries = [{"id": n, "path": f"f{n}", "hashtype": "md5", "hashsum": ""} for n in range(10)]
    plain = parse(json.dumps({"fileids": entries}).encode())
    manifest = parse(json.dumps({"fileids": entries, **posted}).encode())
    assert (manifest.format, manifest.max_failed) == expected
    assert (manifest == plain) == (expected == (CartFormat.TAR, None))


@pytest.mark.parametrize(
    ("posted", "fault"),
    [
        ({"format": "zip"}, "format: must be"),
        ({"on_error": "ignore"}, "on_error: must be"),
        ({"max_failed": 3}, "max_failed: needs"),
        ({"on_error": "partial", "max_failed": -1}, "max_failed: must be"),
        ({"on_error": "partial", "max_failed": "101%"}, "max_failed: must be"),
        ({"on_error": "partial", "max_failed": "5"}, "max_failed: must be"),
        ({"on_error": "partial", "max_failed": 1.5}, "max_failed: expected"),
    ],
)
def test_invalid_format_or_error_policy_is_rejected(posted: dict[str, object], fault: str) -> None:
    with pytest.raises(InvalidManifest, match=fault):
        parse(json.dumps({"fileids": [], **posted}).encode())
