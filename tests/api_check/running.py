"""Schemathesis beside a running service, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.cart_site import CartSite
from tests.support.running_cartd import command, entry, manifest

SETTINGS = Path(__file__).with_name("schemathesis.toml")
KNOWN = ("known-ready", "known-bundled", "known-error", "known-empty")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    status: int
    """0 if schemathesis found nothing."""
    report: str
    seen: Counter[tuple[str, str, int]]
    """How often which method, path of the document and status met."""


def prepare(site: CartSite) -> None:
    """Make the carts that are known to the hooks."""
    files = {"a/one": b"first", "two": b"second" * 1000}
    site.stage("known-ready", files)
    site.stage("known-bundled", files, bundle=True)
    site.stage("known-empty", {})
    site.cartd.post("known-error", manifest([entry("no-such-id", "gone", b"")]))
    site.cartd.wait_until("known-error", "error")


def check(site: CartSite, *options: str) -> Outcome:
    """Ask the service what its description allows, and what it does not; see :func:`prepare`.

    ``options`` are those of ``schemathesis run``.
    """
    seen = site.root / "seen.jsonl"
    seen.write_text("")
    # Given the address of a document, schemathesis does not ask for that itself.
    document = site.root / "openapi.json"
    document.write_bytes(site.cartd.get("/-/openapi.json").body)
    environment = {
        **os.environ,
        "API_CHECK_UIDS": " ".join(KNOWN),
        "API_CHECK_ETAG": site.cartd.get("/known-ready?filename=x.tar").headers["etag"],
        "API_CHECK_SEEN": str(seen),
        "PYTHONPATH": str(SETTINGS.parent.parent.parent),
    }
    done = subprocess.run(
        [
            *(command("schemathesis"), f"--config-file={SETTINGS}", "run", "--no-color"),
            *(str(document), f"--url={site.cartd.url}", "--checks=all", "--warnings=off"),
            *options,
        ],
        cwd=site.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = seen.read_text().splitlines()
    return Outcome(done.returncode, done.stdout, Counter(tuple(json.loads(line)) for line in lines))
