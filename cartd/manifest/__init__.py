"""Parses the manifests that clients post: bytes in, entries or an error out."""

from cartd.manifest.manifest import COMPONENT_LIMIT, ID_LIMIT, PATH_LIMIT, Entry, Manifest, parse

__all__ = ["COMPONENT_LIMIT", "ID_LIMIT", "PATH_LIMIT", "Entry", "Manifest", "parse"]
