"""The configuration: parsing of values, precedence, and error messages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from cartd.config import Config, load, parse_size, sqlalchemy_url
from cartd.config.settings import SETTINGS
from cartd.errors import ConfigError
from tests.support.configuration_page import PAGE, with_tables

PACIFICA = """
[cartd]
transfer_size = 4 Mb
volume_path = /tmp/
lru_buffer_time = 0
lru_purge = on
bundle_task = off

[database]
peewee_url = sqliteext:///db.sqlite3
debug_logging = False
connect_attempts = 10
connect_wait = 20

[archiveinterface]
url = http://127.0.0.1:8080/

[celery]
broker_url = pyamqp://guest:100%@localhost
backend_url = rpc://
"""


def config(
    ini: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    return load(options=options or {}, environ=environ or {}, ini=ini, ini_name="site.ini")


def refusal(ini: str | None = None, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(ini, **given)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- defaults and precedence --------------------------------------------------------------------


def test_without_any_configuration_there_are_defaults() -> None:
    assert config() == Config(
        port=8081,
        address="127.0.0.1",
        endpoints=(),
        public_url=None,
        allowed_hosts=(),
        allowed_origins=(),
        shutdown_grace=30.0,
        max_manifest_size=256_000_000,
        max_entries=5_000_000,
        manifest_memory=32_000_000,
        temp_file_limit=2_000_000_000,
        max_header_size=16_384,
        max_headers=500,
        header_timeout=60.0,
        body_timeout=3600.0,
        idle_timeout=60.0,
        keepalive_timeout=75.0,
        stall_timeout=600.0,
        max_download_time=86400.0,
        max_connections=4000,
        max_connections_per_address=2000,
        max_event_streams=1000,
        volume_path=Path("volume"),
        organization="",
        umask=0o077,
        transfer_size=4 * 1024**2,
        lru_buffer_time=0.0,
        lru_purge=True,
        lru_interval=60.0,
        scrub_interval=0.0,
        retention=7776000.0,
        bundle_task=False,
        require_hashsum=False,
        page_list=False,
        volume_quota=None,
        volume_reserve=10**9,
        max_carts_staging=10_000,
        also_hash=None,
        archive_url="http://127.0.0.1:8080/",
        archive_max_connections=32,
        archive_max_attempts=5,
        archive_outage_limit=86_400.0,
        archive_connect_timeout=10.0,
        archive_stall_timeout=60.0,
        archive_min_rate=1000,
        archive_tape_poll_rate=100,
        archive_recall_retry_interval=21_600.0,
        archive_ca_file=None,
        auth_max_carts_staging=None,
        auth_max_files=None,
        auth_max_bytes=None,
        auth_token_file=None,
        auth_proxy_header=None,
        auth_trusted_proxies=(),
        archive_cert_file=None,
        archive_key_file=None,
        database_url="sqlite:///db.sqlite3",
        database_connect_attempts=10,
        database_connect_wait=20.0,
        log_format="text",
        log_request_id_proxies=(),
        metrics_enabled=True,
        metrics_endpoint=None,
        warnings=(),
    )


def test_every_field_has_one_setting_and_no_place_is_used_twice() -> None:
    fields = [field.name for field in dataclasses.fields(Config)]
    assert fields == [*(setting.field for setting in SETTINGS), "warnings"]
    for attribute in ("environment", "option", "short"):
        names = [name for setting in SETTINGS if (name := getattr(setting, attribute))]
        assert len(names) == len(set(names))
    assert len({(setting.section, setting.key) for setting in SETTINGS}) == len(SETTINGS)


EXAMPLES: dict[str, tuple[str, Any, str, Any]] = {
    "port": ("1", 1, "2", 2),
    "address": ("::1", "::1", "0.0.0.0", "0.0.0.0"),
    "endpoints": ("tcp:1", ("tcp:1",), "unix:/a", ("unix:/a",)),
    "public_url": ("http://a", "http://a/", "HTTPS://b:1/c/", "https://b:1/c/"),
    "allowed_hosts": ("a.example", ("a.example",), "B, *  c-d", ("b", "*", "c-d")),
    "allowed_origins": (
        *("https://a.example", ("https://a.example",)),
        *("HTTP://B:80/ https://[::1]:8443", ("http://b", "https://[::1]:8443")),
    ),
    "shutdown_grace": ("0", 0.0, "1.5", 1.5),
    "max_manifest_size": ("1 KB", 1000, "1 Kb", 1024),
    "max_entries": ("1", 1, "9", 9),
    "manifest_memory": ("1 KB", 1000, "1 Kb", 1024),
    "temp_file_limit": ("1 KB", 1000, "1 Kb", 1024),
    "max_header_size": ("1 KB", 1000, "1 Kb", 1024),
    "max_headers": ("1", 1, "9", 9),
    "header_timeout": ("1", 1.0, "0.5", 0.5),
    "body_timeout": ("1", 1.0, "0.5", 0.5),
    "idle_timeout": ("1", 1.0, "0.5", 0.5),
    "keepalive_timeout": ("1", 1.0, "0.5", 0.5),
    "stall_timeout": ("1", 1.0, "0.5", 0.5),
    "max_download_time": ("3600", 3600.0, "0", 0.0),
    "max_connections": ("1", 1, "9", 9),
    "max_connections_per_address": ("1", 1, "9", 9),
    "max_event_streams": ("0", 0, "9", 9),
    "volume_path": ("/a", Path("/a"), "b/c", Path("b/c")),
    "organization": (
        "An Institute",
        "An Institute",
        "Universität, 3. Stock",
        "Universität, 3. Stock",
    ),
    "umask": ("022", 0o022, "0027", 0o027),
    "transfer_size": ("1 Mb", 2**20, "65536", 65536),
    "lru_buffer_time": ("60", 60.0, "61", 61.0),
    "lru_purge": ("Off", False, "yes", True),
    "lru_interval": ("0.5", 0.5, "1", 1.0),
    "scrub_interval": ("86400", 86400.0, "0", 0.0),
    "retention": ("1.5", 129600.0, "0", 0.0),
    "bundle_task": ("on", True, "0", False),
    "require_hashsum": ("TRUE", True, "no", False),
    "page_list": ("on", True, "off", False),
    "volume_quota": ("1 TB", 10**12, "None", None),
    "volume_reserve": ("0", 0, "2 GB", 2 * 10**9),
    "max_carts_staging": ("1", 1, "9", 9),
    "also_hash": ("SHA-256", "sha256", "none", None),
    "archive_url": ("https://a/b", "https://a/b/", "HTTP://[::1]:80/", "http://[::1]:80/"),
    "archive_max_connections": ("1", 1, "100", 100),
    "archive_max_attempts": ("1", 1, "9", 9),
    "archive_outage_limit": ("0", 0.0, "0.5", 0.5),
    "archive_connect_timeout": ("1", 1.0, "2", 2.0),
    "archive_stall_timeout": ("1", 1.0, "2", 2.0),
    "archive_min_rate": ("0", 0, "2 Kb", 2048),
    "archive_tape_poll_rate": ("1", 1, "20", 20),
    "archive_recall_retry_interval": ("60", 60.0, "0.5", 0.5),
    "archive_ca_file": ("/ca.pem", Path("/ca.pem"), "", None),
    "auth_max_carts_staging": ("20", 20, "0", None),
    "auth_max_files": ("None", None, "1000000", 1_000_000),
    "auth_max_bytes": ("0 TB", None, "5 TB", 5 * 10**12),
    "auth_token_file": ("/tokens", Path("/tokens"), "none", None),
    "auth_proxy_header": ("X-User", "X-User", "", None),
    "log_format": ("text", "text", "json", "json"),
    "log_request_id_proxies": ("::1", (ip_network("::1"),), "unix", ("unix",)),
    "auth_trusted_proxies": (
        "10.0.0.0/8, ::1",
        (ip_network("10.0.0.0/8"), ip_network("::1")),
        "unix\t127.0.0.1",
        ("unix", ip_network("127.0.0.1")),
    ),
    "archive_cert_file": ("/cert.pem", Path("/cert.pem"), "none", None),
    "archive_key_file": ("/key.pem", Path("/key.pem"), "", None),
    "database_url": ("sqlite:////a", "sqlite:////a", "sqlite:///b", "sqlite:///b"),
    "database_connect_attempts": ("1", 1, "2", 2),
    "database_connect_wait": ("0", 0.0, "3", 3.0),
    "metrics_enabled": ("off", False, "on", True),
    "metrics_endpoint": ("tcp:9464", "tcp:9464", "none", None),
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_precedence_is_option_environment_file_default(setting: Any) -> None:
    one_text, one, two_text, two = EXAMPLES[setting.field]
    ini = f"[{setting.section}]\n{setting.key} = {one_text}"
    other = f"[{setting.section}]\n{setting.key} = {two_text}"
    assert getattr(config(ini), setting.field) == one
    assert getattr(config(other), setting.field) == two
    if setting.environment:
        environ = {setting.environment: two_text}
        assert getattr(config(environ=environ), setting.field) == two
        assert getattr(config(ini, environ=environ), setting.field) == two
        assert getattr(config(ini, environ={setting.environment: ""}), setting.field) == one
    if setting.option:
        options = {setting.option: [one_text] if setting.repeatable else one_text}
        assert getattr(config(options=options), setting.field) == one
        assert getattr(config(other, environ=environ, options=options), setting.field) == one
        nothing: dict[str, Any] = {setting.option: [] if setting.repeatable else None}
        assert getattr(config(other, options=nothing), setting.field) == two


def test_several_endpoints_in_file_environment_and_options() -> None:
    ini = "[server]\nendpoint =\n  tcp:80\n\n  unix:/run/a b.sock\n"
    assert config(ini).endpoints == ("tcp:80", "unix:/run/a b.sock")
    assert config("[server]\nendpoint =").endpoints == ()
    assert config(ini, environ={"CARTD_ENDPOINT": " tcp:1\n ssl:2 "}).endpoints == (
        "tcp:1",
        "ssl:2",
    )
    assert config(ini, options={"endpoint": ["tcp:3", "tcp6:4"]}).endpoints == ("tcp:3", "tcp6:4")


# --- Pacifica's files ---------------------------------------------------------------------------


def test_a_file_of_pacifica_works_unchanged() -> None:
    pacifica = config(PACIFICA)
    assert dataclasses.replace(pacifica, warnings=()) == dataclasses.replace(
        config(), volume_path=Path("/tmp/")
    )
    celery, logging = pacifica.warnings
    assert celery == "[celery] of site.ini ignored: cartd needs no broker and no workers"
    assert "debug_logging of site.ini ignored" in logging


def test_a_broker_in_the_environment_is_ignored_with_a_line() -> None:
    environ = {"BROKER_URL": "pyamqp://", "BACKEND_URL": "rpc://"}
    (note,) = config("[celery]\n", environ=environ).warnings
    assert note.startswith("[celery] of site.ini and BROKER_URL and BACKEND_URL ignored")


def test_a_proxy_in_the_environment_is_ignored_with_a_line() -> None:
    environ = {"http_proxy": "http://squid:3128", "HTTPS_PROXY": "http://squid:3128"}
    (note,) = config(environ=environ).warnings
    assert (
        note == "http_proxy and HTTPS_PROXY ignored: cartd connects to the archive without a proxy"
    )
    assert config(environ={"http_proxy": ""}).warnings == ()


def test_the_database_is_found_in_the_documented_order() -> None:
    # Where it is written: options, environment, file.
    places: list[tuple[dict[str, str], dict[str, str], str]] = [
        ({"database": "sqlite:///1"}, {}, ""),
        ({}, {"DATABASE_URL": "sqlite:///2"}, ""),
        ({}, {}, "url = sqlite:///3\n"),
        ({}, {"PEEWEE_URL": "sqliteext:///4"}, ""),
        ({}, {}, "peewee_url = sqliteext:///5\n"),
    ]
    for first in range(len(places)):
        options: dict[str, str] = {}
        environ: dict[str, str] = {}
        ini = "[database]\n"
        for more_options, more_environ, more_ini in places[first:]:
            options |= more_options
            environ |= more_environ
            ini += more_ini
        chosen = config(ini, options=options, environ=environ).database_url
        assert chosen == f"sqlite:///{first + 1}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqliteext:///db.sqlite3", "sqlite:///db.sqlite3"),
        ("sqlite:////srv/db", "sqlite:////srv/db"),
        ("sqliteext+pool:///db?max_connections=8&stale_timeout=3", "sqlite:///db"),
        ("sqlite+pool:///db?timeout=5", "sqlite:///db?timeout=5"),
        ("sqlite+pysqlite:///db", "sqlite:///db"),
        ("postgresql://u:p@h:5432/d", "postgresql+psycopg://u:p@h:5432/d"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgres+pool://h/d", "postgresql+psycopg://h/d"),
        ("postgresext://h/d?register_hstore=1", "postgresql+psycopg://h/d"),
        ("postgresext+pool:///d", "postgresql+psycopg:///d"),
        ("POSTGRESQL+pool://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg://h/d?sslmode=require", "postgresql+psycopg://h/d?sslmode=require"),
        ("postgresql://u:p%40s@h/d", "postgresql+psycopg://u:p%40s@h/d"),
        ("postgresql://u:p@s@h/d", "postgresql+psycopg://u:p%40s@h/d"),
        ("postgresql://u:p s@h/d", "postgresql+psycopg://u:p%20s@h/d"),
    ],
)
def test_database_urls_become_those_of_sqlalchemy(url: str, expected: str) -> None:
    assert sqlalchemy_url(url) == expected
    assert make_url(expected).database in ("d", "db", "db.sqlite3", "/srv/db")


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("url = postgresql://u:p%40s@h/d", "p@s"),
        ("url = postgresql://u:100%@h/d", "100%"),
        ("url = postgresql://u:p%%40s@h/d", "p@s"),
        ("peewee_url = postgresql://u:p%40s@h/d", "p@s"),
        ("peewee_url = postgresql://u:100%%@h/d", "100%"),
        # peewee does not decode: what its parser left as %40 was the password's own.
        ("peewee_url = postgresql://u:p%%40s@h/d", "p%40s"),
    ],
)
def test_a_percent_sign_of_a_password_survives(written: str, password: str) -> None:
    assert make_url(config(f"[database]\n{written}").database_url).password == password


def test_pacificas_variable_doubles_its_percent_signs_too() -> None:
    environ = {"PEEWEE_URL": "postgresql://u:100%%@h/d"}
    assert make_url(config(environ=environ).database_url).password == "100%"
    environ = {"DATABASE_URL": "postgresql://u:100%25@h/d"}
    assert make_url(config(environ=environ).database_url).password == "100%"


def test_values_are_interpolated_in_others() -> None:
    ini = """
        [DEFAULT]
        top = /srv
        [cartd]
        volume_path = %(top)s/100%%/%(Lru_Purge)s/%d
        lru_purge = on
    """
    assert config(re.sub("(?m)^ +", "", ini)).volume_path == Path("/srv/100%/on/%d")


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4 Mb", 4 * 1024**2),
        ("4Mb", 4 * 1024**2),
        ("4 MB", 4_000_000),
        ("0", 0),
        ("17", 17),
        ("3 B", 3),
        ("3 b", 3),
        ("1 KB", 1000),
        ("1 Kb", 1024),
        ("2 GB", 2 * 10**9),
        ("2 Gb", 2 * 2**30),
        ("1 TB", 10**12),
        ("1 Tb", 2**40),
        ("1.5 Kb", 1536),
        ("1.0005 KB", 1000),
        (" 9007199254740993 B ", 9007199254740993),
    ],
)
def test_sizes_have_pacificas_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "Mb", "4 mb", "4 M", "4 MiB", "-1 B", "1e3 B", "4 4 Mb", "1,5 Kb", "9" * 19 + " B"]
)
def test_a_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|too large"):
        parse_size(text)


# --- what is refused ----------------------------------------------------------------------------

UNKNOWN: dict[str, tuple[str, str]] = {
    "misspelt key": (
        "[server]\nprot = 1",
        "site.ini: [server] prot is unknown; did you mean port?",
    ),
    "misspelt section": (
        "[Servr]\nport = 1",
        "site.ini: section [Servr] is unknown; did you mean [server]?",
    ),
    "key of another section": (
        "[database]\nlru_purge = on",
        "site.ini: [database] lru_purge is unknown; it belongs in [cartd]",
    ),
    "nothing like it": ("[cartd]\nxyzzy = 1", "site.ini: [cartd] xyzzy is unknown"),
    "no section like it": ("[xyzzy]", "site.ini: section [xyzzy] is unknown"),
    "key twice": ("[server]\nport = 1\nport = 2", "site.ini: line 3: [server] port occurs twice"),
    "section twice": ("[server]\n[server]", "site.ini: line 2: section [server] occurs twice"),
    "unseen characters": (
        "[\x1b[2J\x00]",
        "site.ini: section [\\x1b[2J\\x00] is unknown",
    ),
    "unseen characters of a key": (
        "[server]\nxyzzy\u202e = 1",
        "site.ini: [server] xyzzy\\u202e is unknown",
    ),
    "no section": ("port = 1", "site.ini: line 1: a key before the first [section]"),
    "not INI": ("[server]\n\nsecret", "site.ini: line 3: is neither [section] nor key = value"),
    "refers to nothing": (
        "[cartd]\nvolume_path = %(top)s/x",
        "site.ini: [cartd] volume_path: refers to %(top)s, which does not exist; write %% for a %",
    ),
    "refers to itself": (
        "[cartd]\nvolume_path = %(volume_path)s",
        "site.ini: [cartd] volume_path: refers to itself",
    ),
}


@pytest.mark.parametrize(("ini", "message"), UNKNOWN.values(), ids=list(UNKNOWN))
def test_an_unknown_key_is_refused_with_a_suggestion(ini: str, message: str) -> None:
    assert refusal(ini) == message


BAD: dict[str, list[str]] = {
    "port": ["", "x", "-1", "65536", "80.0", "\u0661"],
    "address": [""],
    "endpoints": ["8081", "udp:53", "tcp", "stdio:", "tcp:1\0"],
    "public_url": ["", "a.example", "ftp://a", "https://u:p@a", "http://a?b", "http://a b"],
    "allowed_hosts": ["a.example:80", "http://a", "a/b", "-a", "[::1]", "*.a"],
    "allowed_origins": [
        "*",
        "null",
        "a.example",
        "ftp://a",
        "https://a/b",
        "https://u@a",
        "https://a:x",
    ],
    "shutdown_grace": ["", "30s", "-1", "nan", "inf"],
    "max_manifest_size": ["0", "big", ""],
    "max_entries": ["0", "-1", "1 KB"],
    "manifest_memory": ["0", "big", ""],
    "temp_file_limit": ["0", "big", ""],
    "max_header_size": ["0"],
    "max_headers": ["0"],
    "header_timeout": ["0"],
    "body_timeout": ["0"],
    "idle_timeout": ["0"],
    "keepalive_timeout": ["0"],
    "max_download_time": ["-1", "a day"],
    "stall_timeout": ["0"],
    "max_connections": ["0", "none"],
    "max_connections_per_address": ["0"],
    "max_event_streams": ["-1", "many"],
    "volume_path": [""],
    "organization": ["a\tb", "a\x00b", "a\u2028b"],
    "umask": ["", "8", "1000", "0o22", "-1", "777", "100"],
    "transfer_size": ["0", "4 Zb"],
    "lru_buffer_time": ["-0.1"],
    "lru_purge": ["", "maybe", "2"],
    "lru_interval": ["0"],
    "scrub_interval": ["-1", "x"],
    "retention": ["-1", "x", "90 days", "inf"],
    "bundle_task": ["x"],
    "require_hashsum": ["x"],
    "page_list": ["x"],
    "volume_quota": ["0", "lots"],
    "volume_reserve": ["-1", "none"],
    "max_carts_staging": ["0"],
    "also_hash": ["sha257", "shake_128", "sha256 md5"],
    "archive_url": [
        *["", "archive", "ftp://a/", "http://", "http:///x", "http://a:x/", "http://a:99999/"],
        *["http://[a/", "http://u:p@a/", "http://a/?x", "http://a/#x", "http://a b/"],
    ],
    "archive_max_connections": ["0"],
    "archive_max_attempts": ["0"],
    "archive_outage_limit": ["-1", "never"],
    "archive_connect_timeout": ["0"],
    "archive_stall_timeout": ["0"],
    "archive_min_rate": ["-1", "slow"],
    "archive_tape_poll_rate": ["0", "1.5", "1000001"],
    "archive_recall_retry_interval": ["-1", "never"],
    "archive_ca_file": [],
    "auth_max_carts_staging": ["-1", "few"],
    "auth_max_files": ["1.5"],
    "auth_max_bytes": ["-1", "lots"],
    "auth_token_file": ["a\0b"],
    "auth_proxy_header": ["X User", "X-User:", "\u00fc"],
    "log_format": ["", "JSON", "xml", "text json"],
    "log_request_id_proxies": ["proxy.example.org"],
    "auth_trusted_proxies": ["proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1:80"],
    "archive_cert_file": [],
    "archive_key_file": [],
    "database_url": [
        *["", "db.sqlite3", "sqlite:db", "sqlite://db", "sqlite:///", "sqlite:///:memory:"],
        *["sqlite:///a\0b", "postgresql://h:/d", "postgresql://u:"],
        *["postgresql://2#h:x", "postgresql://h/d#x", "postgresql://h/d ?max_connections=1"],
        *["postgresql://u:a\x1fb@h/d", "sqlite:///a ?max_connections=1", "sqlite:///a\x1fb"],
        *["oracle://h/d", "postgresql:d", "postgresql://h:x/d", "postgresql+asyncpg://h/d"],
    ],
    "database_connect_attempts": ["0"],
    "database_connect_wait": ["-1"],
    "metrics_enabled": ["", "maybe"],
    "metrics_endpoint": ["9464", "udp:53", "tcp:1\0"],
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_a_malformed_value_is_refused_with_its_place(setting: Any) -> None:
    place = f"[{setting.section}] {setting.key}"
    for text in BAD[setting.field]:
        assert refusal(f"[{setting.section}]\n{setting.key} = {text}").startswith(
            f"site.ini: {place}: "
        )
        if setting.environment and text:
            message = refusal(environ={setting.environment: text})
            assert message.startswith(f"environment variable {setting.environment}: ")
        if setting.option and text:
            options = {setting.option: [text] if setting.repeatable else text}
            assert refusal(options=options).startswith(f"--{setting.option}: ")


@pytest.mark.parametrize(
    ("written", "hosts", "ports"),
    [
        ("h1:1,h2:2/d?target_session_attrs=read-write", "h1,h2", "1,2"),
        ("h1,h2:5433/d", "h1,h2", ",5433"),
        ("h1,h2,h3/d", "h1,h2,h3", None),
        ("[::1]:1,[fe80::2]/d?connect_timeout=2", "::1,fe80::2", "1,"),
        ("%2FRun%2Fpg,h2/d", "/Run/pg,h2", None),
    ],
)
def test_several_hosts_are_written_as_libpq_has_them(
    written: str, hosts: str, ports: str | None
) -> None:
    url = make_url(sqlalchemy_url(f"postgresql://u:p%40ss@{written}"))
    assert (url.username, url.password, url.host, url.database) == ("u", "p@ss", None, "d")
    assert (url.query["host"], url.query.get("port")) == (hosts, ports)
    assert all(f"{key}=" in written for key in set(url.query) - {"host", "port"})


@pytest.mark.parametrize("hosts", ["h1:x,h2", "h1:99999,h2", "h1:,h2", "[::1,h2", "h1 ,h2"])
def test_a_malformed_host_among_several_is_refused(hosts: str) -> None:
    with pytest.raises(ConfigError, match=r"not a URL|white space") as caught:
        sqlalchemy_url(f"postgresql://u:secret@{hosts}/d")
    assert "secret" not in str(caught.value)


def test_hosts_are_named_in_one_place() -> None:
    with pytest.raises(ConfigError, match="both after the user and in the query"):
        sqlalchemy_url("postgresql://u@h1,h2/d?host=h3")


def test_the_url_of_another_driver_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"remove \+psycopg2") as caught:
        sqlalchemy_url("postgresql+psycopg2://u:secret@h/d")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mysql", "mysql+pool", "mysql+pymysql", "mariadbconnector"])
def test_mysql_is_refused_with_a_migration_hint(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"not supported.*SQLite.*PostgreSQL.*dbsync") as caught:
        sqlalchemy_url(f"{kind}://u:secret@h/d")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@h:x/d",
        "postgresql://u:secret#1@h/d",
        "x://u:secret@h",
        "sqlite:secret",
        "secret@h:x",
        "secret:x",
    ],
)
def test_a_database_url_is_never_shown(url: str) -> None:
    assert "secret" not in refusal(environ={"DATABASE_URL": url})


# --- the documentation --------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["postgresql://u:%(secret)s@h/d", "postgresql:/u:%(secret)s"])
def test_a_password_like_a_reference_is_not_shown(url: str) -> None:
    said = refusal(f"[database]\nurl = {url}\n")
    assert "secret" not in said
    assert "write %% for a %" in said


@pytest.mark.parametrize(
    "key", ["[database]\nconnect_wait", "[server]\nendpoint", "[cartd]\numask"]
)
def test_the_password_of_a_url_on_the_wrong_line_is_not_shown(key: str) -> None:
    said = refusal(f"{key} = postgresql://ada:100%%:p@ss@db/carts\n")
    assert "100" not in said
    assert "ss@" not in said
    assert "@db/carts" in said


def test_the_documentation_has_every_setting_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "docs/configuration.md is out of date: run make docs"


def test_a_section_without_a_table_is_an_error() -> None:
    page = PAGE.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"needs one table below ## `\[auth\]`"):
        with_tables(page.replace("## `[auth]`", "## auth"))


def test_the_documentation_names_the_other_variables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = ["--config", "-c", "CARTD_CONFIG", "PEEWEE_URL", "peewee_url", "BROKER_URL"]
    for name in [*names, "BACKEND_URL", "[celery]", "debug_logging"]:
        assert name in page


def test_the_example_of_the_documentation_is_accepted() -> None:
    (example,) = re.findall(r"```ini\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    taken = config(example)
    assert taken.volume_quota == 20 * 10**12
    assert taken.archive_ca_file == Path("/etc/cartd/archive-ca.pem")
    uncommented = config(re.sub(r"(?m)^# (?=endpoint|    )", "", example))
    assert len(uncommented.endpoints) == 2
