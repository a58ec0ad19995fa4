"""Real caches in front of the service, configured to store all that they may."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.free_ports import free_port
from tests.support.running_cartd import wait_for

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache keys_zone=kept:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_http_version 1.1;
            proxy_cache kept;
            proxy_cache_valid any 10m;
            {more}
        }}
    }}
}}
"""
SQUID = """
http_port 127.0.0.1:{port} accel defaultsite=localhost no-vhost
cache_peer 127.0.0.1 parent {behind} 0 no-query originserver login=PASSTHRU
http_access allow all
refresh_pattern . 0 20% 4320
cache_mem 16 MB
maximum_object_size_in_memory 4 MB
pinger_enable off
pid_filename none
access_log none
cache_log /dev/null
visible_hostname localhost
{more}
"""


@contextmanager
def _running(
    command: list[str], directory: Path, port: int, more: dict[str, str] | None = None
) -> Iterator[int]:
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdout=output, stderr=output, env={**os.environ, **(more or {})}
        )

    def listens() -> bool:
        assert process.poll() is None, (directory / "output").read_text(errors="replace")
        with socket.socket() as connecting:
            return connecting.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens)
        yield port
    finally:
        process.kill()  # squid would wait for half a minute
        process.wait()


@contextmanager
def nginx(directory: Path, behind: int, more: str = "") -> Iterator[int]:
    """Its port; ``more`` is for the location."""
    directory.mkdir()
    port = free_port()
    configuration = directory / "nginx.conf"
    text = NGINX.format(directory=directory, port=port, behind=behind, more=more)
    configuration.write_text(text)
    command = [_found("nginx"), "-p", str(directory), "-c", str(configuration)]
    with _running(command, directory, port) as running:
        yield running


@contextmanager
def squid(directory: Path, behind: int, more: str = "") -> Iterator[int]:
    """Its port; ``more`` is for its configuration."""
    directory.mkdir()
    if os.geteuid() == 0:
        more += "\ncache_effective_user proxy"
    port = free_port()
    configuration = directory / "squid.conf"
    text = SQUID.format(directory=directory, port=port, behind=behind, more=more)
    configuration.write_text(text)
    command = [_found("squid"), "-N", "-f", str(configuration), "-n", f"test{port}"]
    with _running(command, directory, port) as running:
        yield running


@contextmanager
def varnish(directory: Path, behind: int, more: str = "") -> Iterator[int]:
    """Its port; ``more`` is VCL, before that which is built in."""
    directory.mkdir()
    port = free_port()
    vcl = directory / "test.vcl"
    vcl.write_text(
        f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{behind}"; }}\n{more}\n'
    )
    command = [
        *(_found("varnishd"), "-F", "-j", "none", "-n", str(directory / "work")),
        *("-a", f"127.0.0.1:{port}", "-f", str(vcl), "-s", "malloc,16m"),
        *("-p", "vcc_allow_inline_c=off", "-p", "thread_pools=1"),
    ]
    with _running(command, directory, port) as running:
        yield running


def _found(command: str) -> str:
    """Return the path of a program; Debian's are in directories that only root has in its PATH."""
    found = shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert found, f"{command} is not installed"
    return found
