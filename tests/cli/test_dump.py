"""``cartd-cmd dump``: the keys of Pacifica's ``cart.dict()`` and ``file.dict()``, and more."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml

from cartd.cli.carts import dump
from cartd.manifest import Entry
from cartd.model import CartStatus
from cartd.store import Store
from cartd.volume import Volume
from tests.support.stored_carts import manifest, posted, with_status
from tests.support.volume_parts import InThisThread

pytest_plugins = ("tests.support.database_fixtures",)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CART_KEYS = [
    "id",
    "cart_uid",
    "bundle_path",
    "bundle",
    "creation_date",
    "updated_date",
    "deleted_date",
    "status",
    "error",
]
FILE_KEYS = [
    "id",
    "cart",
    "file_name",
    "bundle_path",
    "hash_type",
    "hash_value",
    "status",
    "error",
]


@pytest.fixture
def database(synced_sqlite: Path, tmp_path: Path) -> str:
    copy = tmp_path / "cartd.sqlite3"
    shutil.copy(synced_sqlite, copy)
    return f"sqlite:///{copy}"


async def dumped(store: Store) -> list[dict[str, Any]]:
    """Return the content of both formats, which must be equal."""
    volume = Volume(Path("/volume"), InThisThread())
    as_json, as_yaml = io.StringIO(), io.StringIO()
    await dump(store, volume, as_json, as_json=True)
    await dump(store, volume, as_yaml, as_json=False)
    carts: list[dict[str, Any]] = json.loads(as_json.getvalue())
    assert yaml.load(as_yaml.getvalue(), LOADER) == carts
    return carts


@pytest_twisted.ensureDeferred
async def test_a_store_without_carts_is_an_empty_list(store: Store) -> None:
    assert await dumped(store) == []


@pytest_twisted.ensureDeferred
async def test_active_carts_are_dumped_newest_first(
    store: Store,
) -> None:
    await with_status(store, "gone", CartStatus.DELETED)
    await with_status(store, "failed", CartStatus.ERROR)
    await with_status(store, "whole", CartStatus.READY)
    whole, failed = await dumped(store)
    assert list(whole)[: len(CART_KEYS)] == CART_KEYS
    assert list(whole)[-2:] == ["owner", "files"]
    [file] = whole["files"]
    assert list(file)[: len(FILE_KEYS)] == FILE_KEYS
    assert {key: whole[key] for key in CART_KEYS} == {
        "id": "3",
        "cart_uid": "whole",
        "bundle_path": "/volume/3/whole",
        "bundle": "False",
        "creation_date": "1970-01-01 00:00:10+00:00",
        "updated_date": "1970-01-01 00:00:13+00:00",
        "deleted_date": "None",
        "status": "ready",
        "error": "",
    }
    assert {key: file[key] for key in FILE_KEYS} == {
        "id": "3",
        "cart": "3",
        "file_name": "id0",
        "bundle_path": "dir/file0",
        "hash_type": "sha1",
        "hash_value": "a" * 40,
        "status": "staged",
        "error": "",
    }
    assert (failed["bundle_path"], failed["status"], failed["error"]) == ("", "error", "why")
    assert failed["files"][0]["error"] == "whence"


@pytest_twisted.ensureDeferred
async def test_dump_names_the_tar_and_omits_an_empty_file_list(
    store: Store,
) -> None:
    cart, _ = await store.carts.post("mine", manifest(0), bundle=True, now=10)
    assert await store.leases.claim(cart.id, "me", now=10, until=100)
    await store.progress.record_ready(cart.id, "me", volume_bytes=10_240, now=10)
    [only] = await dumped(store)
    assert (only["bundle"], only["bundle_path"]) == ("True", "/volume/1/mine.tar")
    assert "files" not in only


@pytest_twisted.ensureDeferred
async def test_a_cart_that_cannot_be_on_the_volume_is_dumped_too(store: Store) -> None:
    # Pacifica let its users do this, and failed later.
    await store.carts.post("u" * 255, manifest(1), bundle=True, now=10)
    [only] = await dumped(store)
    assert (only["cart_uid"], only["bundle"], only["bundle_path"]) == ("u" * 255, "True", "")


@pytest_twisted.ensureDeferred
async def test_values_that_look_like_numbers_stay_text(store: Store) -> None:
    awkward = ["yes", "null", "1e3", "0x10", "2020-01-01", "- a", "a: b", "#x", " x ", "'", '"']
    awkward += [
        "a\nb",
        "\x7f\x85\u2028",
        "ä\N{GRINNING FACE}",
        "~",
        "=",
        "<<",
        "%",
        "@",
        "long " * 60,
    ]
    listed = [Entry(text, f"{n}/{text}", "sha1", "") for n, text in enumerate(awkward)]
    await store.carts.post("1.0", manifest(listed), bundle=False, now=10)
    [only] = await dumped(store)
    assert only["cart_uid"] == "1.0"
    assert [file["file_name"] for file in only["files"]] == awkward
    assert [file["bundle_path"] for file in only["files"]] == [entry.path for entry in listed]


@pytest_twisted.ensureDeferred
async def test_a_cart_of_many_files_is_dumped_completely(store: Store) -> None:
    await posted(store, "many", 2001)
    await posted(store, "few", 1)
    few, many = await dumped(store)
    assert len(few["files"]) == 1
    assert [file["position"] for file in many["files"]] == [str(n) for n in range(2001)]
