"""Checks the text of an id: whether it may name a file below the root."""

from __future__ import annotations

import os
import re

from cartd.errors import InvalidInput

INCOMING = ".cartd-archive"
"""The directory below the root for incoming files."""

MAX_COMPONENT = 255
"""Bytes; the limit of POSIX file systems for one name."""

_WINDOWS_FORBIDDEN = re.compile(r'[\\:*?"<>|\x00-\x1f]')
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)")


def check_id(archive_id: str, *, windows: bool = os.name == "nt") -> str:
    """Return ``archive_id`` if it is a relative path below the root, else raise InvalidInput.

    The id has been percent-decoded once: a remaining ``%2e%2e`` is an ordinary name.  One file has
    one id, so empty, ``.`` and ``..`` components are rejected, never resolved.
    """
    if "\0" in archive_id:
        raise InvalidInput("an id cannot contain a NUL")
    if archive_id.startswith("/"):
        raise InvalidInput("an id is a path relative to the root: it does not begin with '/'")
    components = archive_id.split("/")
    if components[0].casefold() == INCOMING:
        raise InvalidInput(f"{INCOMING} is not a part of the archive")
    for component in components:
        _check_component(component, windows)
    return archive_id


def _check_component(component: str, windows: bool) -> None:
    if component in ("", ".", ".."):
        raise InvalidInput(f"an id cannot have the component {component!r}")
    if len(component.encode("utf-8", "surrogatepass")) > MAX_COMPONENT:
        raise InvalidInput(f"a component of an id cannot be over {MAX_COMPONENT} bytes")
    if windows and (
        _WINDOWS_FORBIDDEN.search(component)
        or _WINDOWS_DEVICES.match(component)
        or component[-1] in ". "
    ):
        raise InvalidInput(f"{component!r} cannot be a file's name on Windows")
