"""Reads and validates bags: by the rules of RFC 8493, and by the Library of Congress's bagit.py."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

# It has no type hints.
bagit: Any = importlib.import_module("bagit")


def validate(bag: Path) -> Any:
    """Return the bag in the directory ``bag`` as bagit.py sees it; raises its errors."""
    opened = bagit.Bag(str(bag))
    opened.validate()
    return opened


def read_manifest(data: bytes) -> dict[str, str]:
    """Return the hash of each path in a manifest or tag manifest (RFC 8493, section 2.1.3)."""
    text = data.decode()
    assert not text or text.endswith("\n")
    found: dict[str, str] = {}
    for line in text.split("\n")[:-1]:
        match = re.fullmatch(r"([0-9a-f]+)  ([^\r\n]+)", line)
        assert match, line
        path = re.sub("%(0A|0D|25)", lambda code: chr(int(code[1], 16)), match[2])
        assert "%" not in re.sub("%(0A|0D|25)", "", match[2])
        assert path not in found
        found[path] = match[1]
    return found


def check_files(files: dict[str, bytes], algorithm: str) -> None:
    """Check the files of a bag, by their paths in it, as a strict reader of the RFC does."""

    def sums(names: set[str]) -> dict[str, str]:
        return {n: hashlib.new(algorithm, files[n]).hexdigest() for n in names}

    payload = {name for name in files if name.startswith("data/")}
    manifest, tags = f"manifest-{algorithm}.txt", f"tagmanifest-{algorithm}.txt"
    assert read_manifest(files[manifest]) == sums(payload)
    assert read_manifest(files[tags]) == sums(set(files) - payload - {tags})
    assert files["bagit.txt"] == b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
    oxum = f"Payload-Oxum: {sum(len(files[n]) for n in payload)}.{len(payload)}"
    assert oxum in files["bag-info.txt"].decode().splitlines()
