"""The configuration: any text must give a usable Config, or an error message of one line.

An input is the file.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from cartd.config import Config, load
from cartd.config.settings import SETTINGS
from cartd.errors import ConfigError

WORDS = (

       *(f"[{section}]\n".encode() for section in ("server", "cartd", "database", "DEFAULT")),
    *(f"\n{setting.key} = ".encode() for setting in SETTINGS),
    b"%(home)s", b"%%", b"%", b"4 Mb", b"none", b"1e3", b"nan", b"inf", b"postgresql://u:hunter2@h/d?a=b",
    b"sqlite:///a", b"http://[::1]:80/", b"#", b";", b"\n ", b"\r", b"\x85", b"peewee_url = ",
    b"\xe2\x80\xa8", b"tcp:1", b"\0",
)  # fmt: skip

PASSWORD = "hunter2"
_LONGEST = 4500
"""A message may quote a line of the file, with its name and a reason."""


def check(data: bytes) -> None:
    text = data.decode("utf-8-sig", "replace")
    try:
        config = load(options={}, environ={}, ini=text, ini_name="site.ini")
    except ConfigError as error:
        message = str(error)
        assert message.startswith("site.ini: "), message
        assert message.isprintable() and len(message) <= _LONGEST, message
        if found := re.match(r"site\.ini: \[database\] (\w+): (.*)", message):
            assert not re.search(f":.*{PASSWORD}.*@", found[2]), message
            assert "url" not in found[1] or PASSWORD not in message, message
        return
    _check_values(config)
    again = load(options={}, environ={}, ini=_written(config), ini_name="again.ini")
    assert dataclasses.replace(again, warnings=config.warnings) == config


def _check_values(config: Config) -> None:
    assert 0 <= config.port <= 65_535
    assert config.archive_url.startswith(("http://", "https://")) and config.archive_url[-1] == "/"
    assert config.archive_url.isprintable()
    assert config.max_manifest_size > 0 and config.transfer_size > 0 and config.volume_reserve >= 0
    assert 1 <= config.archive_max_connections <= 1000 and config.archive_max_attempts >= 1
    assert make_url(config.database_url).get_backend_name() in ("sqlite", "postgresql")
    assert all(note.isprintable() for note in config.warnings)
    for setting in SETTINGS:
        value = getattr(config, setting.field)
        if isinstance(value, float):
            assert 0 <= value < float("inf"), setting.field
        if isinstance(value, str | Path):
            assert (str(value) or value == setting.default) and "\0" not in str(value), (
                setting.field
            )


def _written(config: Config) -> str:
    lines: list[str] = []
    for setting in SETTINGS:
        value = getattr(config, setting.field)
        if setting.unit == "octal":
            value = f"{value:03o}"
        if setting.unit == "days":
            value = value / (24 * 60 * 60)
        text = _text(value).replace("%", "%%")
        lines += [f"[{setting.section}]"] if f"[{setting.section}]" not in lines else []
        lines.append(f"{setting.key} = {text}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "\n ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    # A path may end in a space, which a slash keeps.
    return str(value).replace("\n", "\n ") + "/" * str(value)[-1:].isspace()
