"""Warnings of a start about exposed addresses, and [auth] settings that stop it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from cartd.auth import TokenFile
from cartd.auth.authenticator import startup_warnings
from cartd.config import Network, parsers
from tests.service.test_start_errors import why_it_ends
from tests.support.free_ports import free_port
from tests.support.running_cartd import RunningCartd, running_cartd

OPEN = "may post, download and delete every cart: [auth] is off"
PLAIN = "are not encrypted"


def said(cartd: RunningCartd) -> list[str]:
    return [line.partition("#warn] ")[2] for line in cartd.log.splitlines() if "#warn]" in line]


def endpoints(directory: Path, port: int) -> list[str]:
    """Endpoints on all addresses, plain and with TLS, and on loopback ones."""
    pem = directory / "server.pem"
    trustme.CA().issue_cert("x.example").private_key_and_cert_chain_pem.write_to_path(pem)
    listening = [
        *(f"tcp:{port}:interface=127.0.0.1", f"tcp:{free_port()}:interface=127.0.0.2"),
        *(f"tcp:{free_port()}", f"tcp:{free_port()}:interface=0.0.0.0"),
        *(f"ssl:{free_port()}:privateKey={pem}:certKey={pem}", f"unix:{directory}/http.sock"),
    ]
    return [option for endpoint in listening for option in ("--endpoint", endpoint)]


@pytest.mark.parametrize("tokens", [False, True], ids=["off", "tokens"])
def test_an_exposed_address_logs_one_warning(tmp_path: Path, tokens: bool) -> None:
    port = free_port()
    options = endpoints(tmp_path, port)
    TokenFile(tmp_path / "tokens").add("alice", admin=False)
    ini = f"[auth]\ntoken_file = {tmp_path / 'tokens'}\n" if tokens else ""
    with running_cartd(
        tmp_path / "cartd", archive="http://127.0.0.1:9/", options=options, port=port, ini=ini
    ) as cartd:
        plain = [f"0.0.0.0 port {options[at].split(':')[1]}" for at in (5, 7)]
        tls = f"0.0.0.0 port {options[9].split(':')[1]}"
        [line] = said(cartd)
    if tokens:
        assert line.startswith(f"Tokens sent to {', '.join(plain)} {PLAIN}")
    else:
        assert line.startswith(f"Any client that reaches {', '.join([*plain, tls])} {OPEN}")


@pytest.mark.parametrize(("address", "warned"), [("127.0.0.1", 0), ("::1", 0), ("0.0.0.0", 1)])
def test_plain_endpoints_are_checked_too(tmp_path: Path, address: str, warned: int) -> None:
    options = ["--address", address]
    cartd = running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:9/", started=False)
    with cartd as started:
        started.options = tuple(options)
        if address == "::1":
            started.options = (
                *("--endpoint", f"tcp:{started.port}:interface=127.0.0.1"),
                *("--endpoint", f"tcp6:{free_port()}:interface=\\:\\:1"),
            )
        started.start()
        assert sum(OPEN in line for line in said(started)) == warned


@pytest.mark.parametrize(
    ("endpoint", "address", "auth_enabled", "tokens", "expected"),
    [
        ("tcp:80", IPv4Address("TCP", "127.9.9.9", 80), False, False, []),
        ("tcp:80", IPv6Address("TCP", "::1", 80), False, False, []),
        ("unix:/x", UNIXAddress(b"/x"), False, False, []),
        ("tcp:80", IPv6Address("TCP", "::", 80), False, False, [OPEN]),
        ("ssl:80", IPv4Address("TCP", "192.0.2.1", 80), False, False, [OPEN]),
        ("systemd:x", IPv4Address("TCP", "0.0.0.0", 80), True, True, [PLAIN]),
        ("haproxy:tcp:80", IPv4Address("TCP", "0.0.0.0", 80), True, True, [PLAIN]),
        ("haproxy:ssl:80", IPv4Address("TCP", "0.0.0.0", 80), True, True, []),
        ("tcp:80", IPv4Address("TCP", "0.0.0.0", 80), True, False, []),
        ("tcp6:80", IPv6Address("TCP", "fe80::1%eth0", 80), True, True, [PLAIN]),
    ],
)
def test_which_addresses_are_warned_of(
    endpoint: str, address: IAddress, auth_enabled: bool, tokens: bool, expected: list[str]
) -> None:
    lines = list(startup_warnings([(endpoint, address)], auth_enabled=auth_enabled, tokens=tokens))
    assert [text in line for text, line in zip(expected, lines, strict=True)] == [True] * len(lines)


LOCAL = "Every local account may impersonate any user with proxy_header through "
PROXIES = parsers.networks("unix 127.0.0.1 10.0.0.0/8")


@pytest.mark.parametrize(
    ("mode", "address", "proxies", "expected"),
    [
        (0o660, None, PROXIES, []),
        (0o606, None, PROXIES, [LOCAL + "{}: "]),
        (0o606, None, (), []),
        (0o660, "127.0.0.1", PROXIES, [LOCAL + "a loopback address, "]),
        (0o660, "0.0.0.0", PROXIES, [LOCAL + "a loopback address, "]),
        (0o666, "::1", PROXIES, [LOCAL + "{} and a loopback address, "]),
        (0o660, "192.0.2.1", PROXIES, []),
        (0o660, "127.0.0.1", parsers.networks("unix 10.0.0.0/8"), []),
        (0o660, "127.0.0.1", parsers.networks("0.0.0.0/0"), [LOCAL + "a loopback address, "]),
        (0o660, "::", parsers.networks("::1"), [LOCAL + "a loopback address, "]),
    ],
)
def test_a_setup_open_to_impersonation_is_warned_of(
    tmp_path: Path,
    mode: int,
    address: str | None,
    proxies: tuple[Network, ...],
    expected: list[str],
) -> None:
    path = tmp_path / "http.sock"
    path.touch()
    path.chmod(mode)
    listening: list[tuple[str, IAddress]] = [(f"unix:{path}", UNIXAddress(bytes(path)))]
    if address is not None:
        kind = IPv6Address if ":" in address else IPv4Address
        listening.append(("tcp:80", kind("TCP", address, 80)))
    lines = list(startup_warnings(listening, auth_enabled=True, tokens=False, proxies=proxies))
    assert len(lines) == len(expected)
    for line, begins in zip(lines, expected, strict=True):
        assert line.startswith(begins.format(path))


def test_a_world_writable_socket_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    path.touch()
    for mode, warnings in ((0o660, 0), (0o666, 1)):
        path.chmod(mode)
        listening: list[tuple[str, IAddress]] = [(f"unix:{path}", UNIXAddress(bytes(path)))]
        lines = list(startup_warnings(listening, auth_enabled=False, tokens=False))
        assert len(lines) == warnings
        assert all(str(path) in line for line in lines)


def test_a_missing_token_file_error_explains_how_to_create_it(tmp_path: Path) -> None:
    line = why_it_ends(tmp_path, ini="[auth]\ntoken_file = tokens\n")
    assert line == "cartd: tokens: no such file; create it with cartd-cmd token add NAME"


def test_incomplete_proxy_settings_stop_the_start(tmp_path: Path) -> None:
    line = why_it_ends(tmp_path, ini="[auth]\nproxy_header = X-User\n")
    assert (
        line
        == "cartd: [auth] proxy_header: needs trusted_proxies, the peers from which it is accepted"
    )
