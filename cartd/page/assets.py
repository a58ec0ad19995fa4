"""The files that the pages load, and their addresses, which change with their content."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

STATIC = "/-/static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    content: bytes
    media_type: str
    version: str
    """Hash of its content."""


def _load() -> dict[str, Asset]:
    found = {}
    for path in sorted((Path(__file__).parent / "static").iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            version = sha256(content).hexdigest()[:16]
            found[path.name] = Asset(content, _TYPES[path.suffix], version)
    return found


ASSETS = _load()
"""All files by their names."""


def asset_url(name: str) -> str:
    """Return the path of a file, with its version, so that browsers can keep it for ever."""
    return f"{STATIC}/{name}?v={ASSETS[name].version}"
