"""The OpenAPI description and the REST reference say what the structs are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from cartd.http.routes import OPENAPI
from cartd.status.document import File, Status

ROOT = Path(__file__).parents[2]
DESCRIPTION: dict[str, Any] = json.loads(OPENAPI)
TEMPLATE = "#/components/schemas/{name}"


class Strict(Status, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A status document without unknown fields."""


def bare(schema: Any) -> Any:
    """Return a schema without descriptions, which readers get and structs have no place for."""
    if isinstance(schema, dict):
        return {
            key: bare(value)
            for key, value in schema.items()
            if key != "description" or not isinstance(value, str)
        }
    return [bare(one) for one in schema] if isinstance(schema, list) else schema


def section() -> str:
    page = (ROOT / "docs/rest.md").read_text("utf-8")
    found = re.search(r"^## GET /-/carts/UID\n(.*?)^## ", page, re.M | re.S)
    assert found is not None
    return found[1]


def documented_example() -> Any:
    found = re.search(r"```json\n(.*?)```", section(), re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_described_schemas_are_those_of_the_structs() -> None:
    _, schemas = msgspec.json.schema_components([Status, File], ref_template=TEMPLATE)
    described = DESCRIPTION["components"]["schemas"]
    assert {name: bare(described[name]) for name in schemas} == bare(schemas)


def test_the_examples_are_status_documents_and_the_same() -> None:
    described = DESCRIPTION["paths"]["/-/carts/{uid}"]["get"]["responses"]["200"]
    example = described["content"]["application/json"]["example"]
    assert example == documented_example()
    document = msgspec.convert(example, Strict)
    assert msgspec.to_builtins(document) == example


def test_every_field_is_explained() -> None:
    table = re.findall(r"^\| (`.*?) \|", section(), re.M)
    explained = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    obvious = {"uid", "owner", "name", "labels", "created", "started", "finished", "links", "bytes"}
    assert {*Status.__struct_fields__} - obvious - {"problem"} <= explained
