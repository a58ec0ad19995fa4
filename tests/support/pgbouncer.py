"""A real PgBouncer in front of the tests' PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from tests.support.free_ports import free_port
from tests.support.running_cartd import wait_for


@contextmanager
def pgbouncer(
    database: str, *, pool_mode: str, pool_size: int, **settings: str | int
) -> Iterator[str]:
    """Yield a URL through PgBouncer for the database of that URL, whose server has a socket."""
    parsed = make_url(database)
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="cartd-pgbouncer-"))
    given = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "logfile": directory / "log",
        "pool_mode": pool_mode,
        "default_pool_size": pool_size,
        "max_client_conn": 200,
        **settings,
    }
    lines = "\n".join(f"{name} = {value}" for name, value in given.items())
    server = f"host={parsed.query['host']} user={parsed.username} dbname={parsed.database}"
    ini = directory / "pgbouncer.ini"
    ini.write_text(f"[databases]\n{parsed.database} = {server}\n[pgbouncer]\n{lines}\n")
    as_whom: tuple[str, ...] = ()
    if os.geteuid() == 0:
        # It does not run as root; the owner of the server's directory may connect.
        owner = Path(str(parsed.query["host"])).owner()
        shutil.chown(directory, owner)
        shutil.chown(ini, owner)
        as_whom = ("-u", owner)
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    process = subprocess.Popen((program, "-q", *as_whom, str(ini)), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (directory / "log").read_text()
        yield f"postgresql://{parsed.username}@127.0.0.1:{port}/{parsed.database}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


def _listens(port: int) -> bool:
    with socket.socket() as connecting:
        return connecting.connect_ex(("127.0.0.1", port)) == 0
