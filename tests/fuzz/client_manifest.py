"""The client's manifests: those that the service takes have the same files for the client."""

from __future__ import annotations

from cartd import manifest as service
from cartd.errors import CartdError
from cartd_client.errors import InvalidManifest
from cartd_client.manifest import Manifest
from tests.fuzz.manifest import WORDS as WORDS

_STRICTER = ("recursion", "there twice")
"""What the client rejects, and the service does not."""


def check(data: bytes) -> None:
    fault = ""
    files = []
    try:
        files = list(Manifest(data).files())
    except InvalidManifest as error:
        fault = str(error)
        assert error.problem["errors"][0]["pointer"].startswith("#"), error.problem
    try:
        posted = service.parse(data).entries
    except CartdError:
        return
    if any(known in fault for known in _STRICTER):
        return
    assert not fault, fault
    assert [(file.id, file.path, file.hash_type, file.hash_sum or "") for file in files] == [
        (entry.archive_id, entry.path, entry.hash_type, entry.hash_sum) for entry in posted
    ]
