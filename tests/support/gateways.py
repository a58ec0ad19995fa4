"""Real proxies and balancers in front of a service, each a process of its own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.free_ports import free_port
from tests.support.running_cartd import wait_for


@contextmanager
def running_nginx(directory: Path, locations: str) -> Iterator[int]:
    """Run nginx as one process with these ``location`` blocks; yield its port."""
    port = free_port()
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {directory}/nginx.pid;"
        f" error_log {directory}/nginx.log; events {{}}\n"
        f"http {{ access_log off; {paths}\n"
        f"server {{ listen 127.0.0.1:{port};\n{locations}\n}} }}\n"
    )
    with _ended(["nginx", "-p", str(directory), "-e", "stderr", "-c", str(config)]):
        wait_for(lambda: _listens(port))
        yield port


@contextmanager
def running_haproxy(directory: Path, backend: str, port: int | None = None) -> Iterator[Path]:
    """Run HAProxy with one ``backend`` named b; yield its statistics socket.

    It listens on ``port``, or on any.
    """
    control, config = directory / "haproxy.sock", directory / "haproxy.cfg"
    config.write_text(
        f"global\n  stats socket {control}\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
        f"frontend f\n  bind 127.0.0.1:{port or free_port()}\n  default_backend b\n"
        f"backend b\n{backend}\n"
    )
    with _ended(["haproxy", "-db", "-f", str(config)]):
        wait_for(control.exists)
        yield control


def haproxy_state(control: Path) -> dict[str, dict[str, str]]:
    """The lines of HAProxy's statistics for the servers of backend b, by the server's name."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(control))
        asking.sendall(b"show stat\n")
        said = b"".join(iter(lambda: asking.recv(1 << 16), b"")).decode()
    head, *lines = said.lstrip("# ").splitlines()
    rows = [dict(zip(head.split(","), line.split(","), strict=False)) for line in lines if line]
    return {row["svname"]: row for row in rows if row["pxname"] == "b"}


def _listens(port: int) -> bool:
    with socket.socket() as connecting:
        return connecting.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _ended(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
