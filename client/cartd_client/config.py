"""Settings of the client: the service's URL and the credentials, from where users keep them.

Profiles are in ``client.toml`` in the configuration directory (:func:`config_path`)::

    default = "lab"

    [profiles.lab]
    url = "https://cartd.example.org"
    token_file = "~/.config/cartd/lab.token"
    cacert = "/etc/ssl/site.pem"

What counts, the first that is there:

* URL: the option ``--url``, ``CARTD_URL``, the profile's ``url``.
* Profile: ``--profile``, ``CARTD_PROFILE``, ``default``, the only one.
* Credentials: ``--token-file``, ``CARTD_TOKEN``, the profile's ``token_file``, the keyring if the
  profile has ``keyring = true``, name and password in the URL, the host's entry in ``~/.netrc``
  (or ``NETRC``).  A profile's credentials are sent to the profile's own URL only.
* Certificates: ``--cacert``, ``CARTD_CACERT``, the profile's ``cacert``, the system's.

Files that a profile names may be relative to its own.  A file with a token or a password must not
be accessible to others.
"""

from __future__ import annotations

import importlib
import json
import netrc
import os
import re
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from cartd_client.errors import UsageError
from cartd_client.transport import split_login

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYRING_SERVICE = "cartd-client"
"""The name under which tokens are in the keyring; the user there is the URL of the service."""
MAX_TOKEN = 4096
"""Bytes of a file with a token."""
_NAME = re.compile("[A-Za-z0-9_-]{1,100}")
_KEYS: Mapping[str, type[Any] | tuple[type[Any], ...]] = {
    "url": str,
    "token_file": str,
    "keyring": bool,
    "cacert": str,
    "retries": int,
    "jobs": int,
    "limit_rate": (str, int),
    "progress": str,
}


@dataclass(frozen=True)
class Settings:
    """What the client needs to reach a service."""

    url: str
    """With a final ``/``, and without credentials."""
    token: str | None = field(default=None, repr=False)
    login: tuple[str, str] | None = field(default=None, repr=False)
    """Name and password for a proxy in front of the service, if there is no token."""
    cacert: str | None = None
    profile: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the profile: ``retries``, ``jobs``, ``limit_rate``, ``progress``."""
    credentials_from: str | None = None
    """Where the credentials were found, for people."""
    notes: tuple[str, ...] = ()
    """Warnings for people."""


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file of the profiles: ``CARTD_CLIENT_CONFIG``, else the platform's place."""
    given = environ.get("CARTD_CLIENT_CONFIG")
    return Path(given) if given else platformdirs.user_config_path("cartd") / "client.toml"


def load(
    *,
    url: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    cacert: str | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Return the settings from options, the environment and the profile; raise UsageError."""
    profile = profile or environ.get("CARTD_PROFILE") or None
    given = url or environ.get("CARTD_URL") or None
    path = config_path(environ)
    name, values = _profile(profile, path, needed=given is None)
    base = given or values.get("url")
    if base is None:
        raise UsageError(
            "The URL of the service is not known: give --url URL, set CARTD_URL, or run cart login"
        )
    base, login = split_login(base)
    if login is not None and given is None:
        _check_access(path, path.stat())
    own = "url" in values and split_login(values["url"])[0] == base
    notes: list[str] = []
    token, found = _token(base, token_file, values if own else {}, environ, notes)
    if token is None:
        if login is not None:
            found = "the URL"
        else:
            login, found = _netrc(urlsplit(base).hostname or "", environ, notes)
        if login is not None and login[1].startswith("cartd_"):
            token, login = login[1], None
    else:
        login = None
    if (token or login) and not _is_private(base):
        notes.append(f"The credentials are sent to {base} without encryption: use https")
    return Settings(
        url=base,
        token=token,
        login=login,
        cacert=cacert or environ.get("CARTD_CACERT") or values.get("cacert"),
        profile=name,
        options={
            key: values[key]
            for key in ("retries", "jobs", "limit_rate", "progress")
            if key in values
        },
        credentials_from=found,
        notes=tuple(notes),
    )


def read_token(path: str | os.PathLike[str]) -> str:
    """Return the token in a file; raise UsageError, also if others have access to the file."""
    file = _expanded(path)
    try:
        with file.open("rb") as opened:
            _check_access(file, os.fstat(opened.fileno()))
            text = opened.read(MAX_TOKEN + 1)
    except OSError as error:
        raise UsageError(f"The token file {file} cannot be read: {error.strerror}") from error
    token = text.strip().decode("ascii", errors="replace")
    valid = token.isascii() and token.isprintable() and " " not in token
    if not token or not valid or len(text) > MAX_TOKEN:
        raise UsageError(f"The token file {file} must have one token, and nothing else")
    return token


def save_login(
    url: str,
    token: str | None,
    *,
    profile: str = "default",
    use_keyring: bool | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Write a profile with the URL, and its token; return where the token is, for people.

    The token goes to the keyring, or to a file beside the profiles that only its user can read:
    by default to the keyring if there is one.  Other keys and profiles are kept.

    :raises UsageError: a file cannot be written, or there is no keyring.
    """
    base, _ = split_login(url)
    path = config_path(environ)
    if not _NAME.fullmatch(profile):
        raise UsageError(f"A profile's name has letters, digits, - and _ only: {profile!r}")
    old = _read(path)
    _parsed(old, path)
    file = path.with_name(f"{profile}.token")
    in_keyring = (
        token is not None
        and use_keyring is not False
        and _to_keyring(base, token, required=use_keyring is True)
    )
    in_file = token is not None and not in_keyring
    values = {
        "url": base,
        "keyring": in_keyring or None,
        "token_file": str(file) if in_file else None,
    }
    text = _edited(old, profile, values)
    _check_edit(old, text, profile, values, path)
    if token is not None and in_file:
        _write(file, token + "\n")
    _write(path, text)
    if token is None:
        return "no token"
    return "the keyring" if in_keyring else str(file)


# Credentials


def _token(
    url: str,
    token_file: str | os.PathLike[str] | None,
    values: Mapping[str, Any],
    environ: Mapping[str, str],
    notes: list[str],
) -> tuple[str | None, str | None]:
    """Return the token, and where it was."""
    if token_file is not None:
        return read_token(token_file), str(token_file)
    if environ.get("CARTD_TOKEN"):
        return environ["CARTD_TOKEN"].strip(), "CARTD_TOKEN"
    if "token_file" in values:
        return read_token(values["token_file"]), values["token_file"]
    if values.get("keyring"):
        try:
            token = importlib.import_module("keyring").get_password(KEYRING_SERVICE, url)
        except Exception as error:  # a keyring's own errors are many
            notes.append(f"The keyring cannot be read: {error}")
            return None, None
        if token:
            return str(token), "the keyring"
        notes.append(f"The keyring has no token for {url}: run cart login")
    return None, None


def _netrc(
    host: str, environ: Mapping[str, str], notes: list[str]
) -> tuple[tuple[str, str] | None, str | None]:
    """Return name and password of the host's own entry, and where it was."""
    given = environ.get("NETRC")
    names = ("~/.netrc", "~/_netrc") if sys.platform == "win32" else ("~/.netrc",)
    for name in [given] if given else names:
        path = Path(name)
        try:
            path = _expanded(name)
            hosts = netrc.netrc(str(path)).hosts
        except (FileNotFoundError, UsageError):
            continue  # UsageError: this user has no home
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
            notes.append(f"{path} is ignored: {error}")
            continue
        if host in hosts:
            _check_access(path, path.stat())
            user, _, password = hosts[host]
            return (user, password or ""), str(path)
    return None, None


def _check_access(path: Path, status: os.stat_result) -> None:
    """Raise UsageError if another user may read or write a file with credentials."""
    if sys.platform == "win32" or not stat.S_ISREG(status.st_mode):
        return
    if status.st_mode & 0o077:
        raise UsageError(
            f"Other users have access to {path} (mode {stat.S_IMODE(status.st_mode):o}):"
            f" chmod 600 {path}"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{path} belongs to another user")


def _is_private(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" or host in ("localhost", "::1") or host.startswith("127.")


def _to_keyring(url: str, token: str, *, required: bool) -> bool:
    """Store the token; return whether it is stored.

    :raises UsageError: a keyring is required, and there is none.
    """
    try:
        keyring = importlib.import_module("keyring")
        if not required and keyring.get_keyring().priority < 1:
            return False  # a backend that stores nothing, or in plain text
        keyring.set_password(KEYRING_SERVICE, url, token)
    except ImportError as error:
        if required:
            raise UsageError(
                "The package keyring is not installed: pip install cartd-client[keyring]"
            ) from error
        return False
    except Exception as error:  # a keyring's own errors are many
        if required:
            raise UsageError(f"The keyring cannot be written: {error}") from error
        return False
    return True


# The file of profiles


def _profile(name: str | None, path: Path, *, needed: bool) -> tuple[str | None, dict[str, Any]]:
    """Return the profile that counts, and its name; none if there is none and none is needed."""
    document = _parsed(_read(path), path)
    profiles = document.get("profiles", {})
    if not isinstance(profiles, dict):
        raise UsageError(f"{path}: profiles is no table")
    chosen = name or document.get("default")
    if chosen is None and len(profiles) == 1:
        chosen = next(iter(profiles))
    if chosen is None:
        if needed and profiles:
            names = ", ".join(sorted(profiles))
            raise UsageError(f"{path} has several profiles: choose one by --profile: {names}")
        return None, {}
    values = profiles.get(chosen)
    if not isinstance(values, dict):
        raise UsageError(f"{path} has no profile {chosen!r}")
    for key, value in values.items():
        kind = _KEYS.get(key)
        if kind is None:
            raise UsageError(f"{path}: unknown key {key!r} in the profile {chosen!r}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{path}: the value of {key!r} in the profile {chosen!r} is invalid")
    return chosen, {**values, **_from_directory(path, values)}


def _from_directory(path: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that a profile names; relative ones are beside the file of profiles."""
    names = {key: values[key] for key in ("token_file", "cacert") if key in values}
    return {key: str(path.parent / _expanded(name)) for key, name in names.items()}


def _expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with the home directory in place of ``~``; raise UsageError."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, KeyError) as error:  # KeyError: Python 3.9
        raise UsageError(f"{path}: there is no such home directory") from error


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is invalid: {error}") from error


def _edited(text: str, profile: str, values: Mapping[str, Any]) -> str:
    """Return the file with these keys of the profile; ``None`` removes a key."""
    lines = text.splitlines()
    header = f"[profiles.{profile}]"
    set_lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]
    start = next((at for at, line in enumerate(lines) if line.strip() == header), None)
    if start is None:
        before = [*lines, ""] if lines else []
        return "\n".join([*before, header, *set_lines, ""])
    end = next(
        (at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")),
        len(lines),
    )
    kept = [line for line in lines[start + 1 : end] if line.partition("=")[0].strip() not in values]
    return "\n".join([*lines[: start + 1], *set_lines, *kept, *lines[end:], ""])


def _check_edit(old: str, new: str, profile: str, values: Mapping[str, Any], path: Path) -> None:
    """Raise UsageError unless the edit has changed these keys, and nothing else."""
    wanted = _parsed(old, path)
    profiles = wanted.setdefault("profiles", {})
    table = profiles.setdefault(profile, {}) if isinstance(profiles, dict) else None
    if isinstance(table, dict):
        for key, value in values.items():
            table.pop(key, None)
            if value is not None:
                table[key] = value
    try:
        done = tomllib.loads(new) == wanted
    except tomllib.TOMLDecodeError:
        done = False
    if not done:
        raise UsageError(f"{path} has a form that cannot be changed here: edit it by hand")


def _write(path: Path, text: str) -> None:
    """Replace the file by one that only its user can read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Created with mode 600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
