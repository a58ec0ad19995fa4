"""The OpenAPI document is valid and matches the code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import example, given
from hypothesis import strategies as st

from cartd import __version__
from cartd.checksum import digest_size
from cartd.errors import CartdError, InvalidInput
from cartd.http.headers import MAX_FILENAME_BYTES, check_filename
from cartd.http.paths import APPS
from cartd.http.routes import OPENAPI
from cartd.manifest import COMPONENT_LIMIT, ID_LIMIT, PATH_LIMIT, parse
from cartd.model import UID_PATTERN, CartStatus, check_uid

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cartd/http/openapi.json"
DOCUMENT: dict[str, Any] = json.loads(OPENAPI)
COMPONENTS = DOCUMENT["components"]
ENTRY = COMPONENTS["schemas"]["Entry"]["properties"]
HASH_TYPES: list[str] = ENTRY["hashtype"]["enum"]
METHODS = ("get", "head", "post", "put", "delete")
OPERATIONS = [
    (f"{method.upper()} {path}", item[method])
    for path, item in DOCUMENT["paths"].items()
    for method in METHODS
    if method in item
]
each_operation = pytest.mark.parametrize(
    "operation", [operation for _, operation in OPERATIONS], ids=[name for name, _ in OPERATIONS]
)


def resolved(value: Any) -> Any:
    """Return a value of the document with its reference resolved."""
    while "$ref" in value:
        found: Any = DOCUMENT
        for key in value["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        value = found
    return value


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


# --- the document -------------------------------------------------------------------------------


def test_document_is_valid_openapi() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()


def test_the_validation_finds_faults() -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        schemathesis.openapi.from_dict({**DOCUMENT, "info": {}}).validate()


def test_the_document_is_the_file_with_the_version_of_cartd() -> None:
    assert DOCUMENT["info"]["version"] == __version__
    info = {**DOCUMENT["info"], "version": "0.0.0"}
    # Python's layout, so that the service returns the lines of the file.
    assert FILE.read_text("utf-8") == json.dumps({**DOCUMENT, "info": info}, indent=2) + "\n"


def test_every_reference_resolves_and_every_component_is_used() -> None:
    used = set(references(DOCUMENT))
    assert all(resolved({"$ref": each}) for each in used)
    there = {
        f"#/components/{kind}/{name}"
        for kind, components in COMPONENTS.items()
        for name in components
    }
    schemes = {name for need in DOCUMENT["security"] for name in need}
    used |= {f"#/components/securitySchemes/{name}" for name in schemes}
    # No documented operation returns 405.
    assert there - used == {"#/components/responses/MethodNotAllowed"}


def test_the_operations_are_the_routes_of_the_service() -> None:
    routes = {
        f"{method} {rule.rule.replace('<', '{').replace('>', '}')}"
        for app in APPS
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        # werkzeug accepts HEAD for every GET.
        if method != "HEAD" or rule.rule == "/<uid>"
        if method != "OPTIONS"
    }
    assert {name for name, _ in OPERATIONS} == routes


@each_operation
def test_an_operation_has_a_name_a_summary_and_an_example(operation: Any) -> None:
    assert operation["operationId"] and operation["summary"]
    names = [each["operationId"] for _, each in OPERATIONS]
    assert names.count(operation["operationId"]) == 1
    answers = [resolved(answer) for answer in operation["responses"].values()]
    contents = [content for answer in answers for content in answer.get("content", {}).values()]
    assert any("example" in content for content in contents) or operation["operationId"] in (
        "getCartStatus",  # no body
        "downloadCart",  # a tar
    )


@each_operation
def test_every_operation_lists_the_common_errors(operation: Any) -> None:
    open_to_all = operation.get("security") == []
    assert {"400", "408", "429", "431", "500", "503"} <= operation["responses"].keys()
    assert ("401" in operation["responses"]) is not open_to_all


def test_every_error_of_the_service_is_described() -> None:
    elsewhere = ("tests.", "cartd.directory_archive.")
    of_service = [kind for kind in kinds(CartdError) if not kind.__module__.startswith(elsewhere)]
    codes = {str(kind.code) for kind in of_service}
    described = {code for _, operation in OPERATIONS for code in operation["responses"]}
    assert codes <= described


def test_every_error_status_is_in_the_rest_reference() -> None:
    page = (ROOT / "docs/rest.md").read_text("utf-8")
    explained = set(re.findall(r"^\| ([45]\d\d) \|", page, re.M))
    described = {code for _, operation in OPERATIONS for code in operation["responses"]}
    elsewhere = set(re.findall(r"\b[45]\d\d\b", DOCUMENT["info"]["description"]))
    assert explained == {code for code in described | elsewhere if code >= "400"}


def kinds(error: type[CartdError]) -> list[type[CartdError]]:
    return [error, *(each for kind in error.__subclasses__() for each in kinds(kind))]


def test_cart_statuses_are_complete() -> None:
    headers = COMPONENTS["headers"]
    statuses = {*headers["Status"]["schema"]["enum"], headers["StatusError"]["schema"]["const"]}
    assert statuses == set(CartStatus) - {CartStatus.DELETED, CartStatus.BUNDLING}
    phases = {*headers["Phase"]["schema"]["enum"], CartStatus.ERROR}
    assert phases == set(CartStatus) - {CartStatus.DELETED}


def test_limits_are_those_of_the_code() -> None:
    assert COMPONENTS["parameters"]["newUid"]["schema"]["pattern"] == f"^{UID_PATTERN}$"
    filename = COMPONENTS["parameters"]["filename"]
    assert filename["schema"]["maxLength"] == MAX_FILENAME_BYTES
    assert f"up to {MAX_FILENAME_BYTES} bytes" in filename["description"]
    assert ENTRY["id"]["anyOf"][1]["maxLength"] == ID_LIMIT
    assert f"1 to {ID_LIMIT:,} bytes" in ENTRY["id"]["description"]
    assert f"up to {PATH_LIMIT:,} bytes" in ENTRY["path"]["description"]
    assert f"each component up to {COMPONENT_LIMIT}." in ENTRY["path"]["description"]


def test_hash_types_are_those_of_fixed_length_in_every_python() -> None:
    of_python = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")}
    assert set(HASH_TYPES) == of_python
    [of_checksums] = DOCUMENT["paths"]["/-/carts/{uid}/checksums"]["get"]["parameters"]
    assert of_checksums["schema"]["enum"] == HASH_TYPES


# --- the schemas --------------------------------------------------------------------------------


def validator(schema: Any) -> jsonschema_rs.Validator:
    whole = {**schema, "components": COMPONENTS}
    return jsonschema_rs.Draft202012Validator(whole)


MANIFEST = validator({"$ref": "#/components/schemas/Manifest"})
UID = validator(COMPONENTS["parameters"]["newUid"]["schema"])
FILENAME = validator(COMPONENTS["parameters"]["filename"]["schema"])

PIECES = [
    "/",
    ".",
    "..",
    "a",
    "%2e",
    "%2E",
    "\\",
    "%5c",
    "%2f",
    "\0",
    "%00",
    "é",
    "\n",
    "%",
    "%%2e",
]
texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.sampled_from(
    ["a" * 255, "a" * 256, "b/" * 20, "x" * 1024, "x" * 1025]
)
others: st.SearchStrategy[object] = st.sampled_from([None, True, 1.5, [], {}, 7, -7, 2**70])
sums = st.tuples(
    st.sampled_from([0, 1, 2, *{2 * digest_size(name) for name in HASH_TYPES}]),
    st.sampled_from("aF09g \n"),
).map(lambda chosen: chosen[0] * chosen[1])
entries = st.fixed_dictionaries(
    {},
    optional={
        "id": texts | others,
        "path": texts | others,
        "hashtype": st.sampled_from(HASH_TYPES) | others,
        "hashsum": sums | others,
        "more": others,
    },
)
good = {"id": 1, "path": "a", "hashtype": "sha1", "hashsum": ""}
manifests = st.fixed_dictionaries(
    {},
    optional={
        "fileids": st.lists(entries.map(lambda entry: {**good, **entry}) | entries, max_size=1)
        | others,
        "bundle": st.booleans() | others,
        "more": others,
    },
)


def is_taken(manifest: object) -> bool:
    try:
        parse(json.dumps(manifest).encode())
    except InvalidInput:
        return False
    return True


@pytest.mark.parametrize("key", ["id", "path"])
def test_schema_of_ids_and_paths_matches_the_parser(key: str) -> None:
    for count in range(4):
        for pieces in product(PIECES, repeat=count):
            manifest = {"fileids": [{**good, key: "".join(pieces)}]}
            assert MANIFEST.is_valid(manifest) is is_taken(manifest), pieces


@given(manifests | others)
@example({"fileids": [{**good, "hashsum": "a" * 39 + "\n"}]})
@example({"fileids": [{**good, "hashsum": "a" * 40 + "\n"}]})
@example({"fileids": [{**good, "hashtype": "shake_128"}]})
def test_schema_of_manifest_matches_the_parser(manifest: object) -> None:
    assert MANIFEST.is_valid(manifest) is is_taken(manifest)


@pytest.mark.parametrize("hash_type", HASH_TYPES)
def test_schema_checks_hash_length(hash_type: str) -> None:
    for digits in range(140):
        entry = {
            **good,
            "hashtype": hash_type,
            "hashsum": "aF" * (digits // 2) + "0" * (digits % 2),
        }
        assert MANIFEST.is_valid({"fileids": [entry]}) is (
            digits in (0, 2 * digest_size(hash_type))
        )


def test_example_manifest_is_accepted() -> None:
    body = DOCUMENT["paths"]["/{uid}"]["post"]["requestBody"]["content"]["application/json"]
    [example] = body["examples"].values()
    assert MANIFEST.is_valid(example["value"]) and is_taken(example["value"])


@given(texts | st.text(max_size=4))
@example("a\n")
@example("-a")
@example("~" * 255)
def test_uid_pattern_matches_check_uid(uid: str) -> None:
    assert UID.is_valid(uid) is _passes(check_uid, uid)


@given(texts | st.sampled_from([".tar", "..tar", "...tar", "....tar", "a.tar"]))
def test_schema_of_filename_matches_check_filename(name: str) -> None:
    assert FILENAME.is_valid(name) is _passes(check_filename, name)


def _passes(check: Any, value: str) -> bool:
    try:
        check(value)
    except InvalidInput:
        return False
    return True
