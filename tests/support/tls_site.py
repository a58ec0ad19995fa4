"""A service behind TLS, beside a plain endpoint, with an archive of its own."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import trustme

from tests.support.cart_site import CartSite
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.free_ports import free_port
from tests.support.running_cartd import DEADLINE, running_cartd
from tests.support.served_directory import served_directory
from tests.support.wire import Wire

NAME = "cartd.example"
LARGE = Random(3).randbytes(24 * 2**20)
"""More than all buffers between the service and a stalled client hold."""


@dataclass(frozen=True, slots=True)
class TlsSite:
    """A site, and how it is reached over TLS."""

    site: CartSite
    port: int
    roots: Path

    def context(self) -> ssl.SSLContext:
        """A client context that trusts the site's authority, and offers HTTP/2."""
        context = ssl.create_default_context(cafile=str(self.roots))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    @contextmanager
    def wire(self, context: ssl.SSLContext | None = None) -> Iterator[Wire]:
        with self.plainly() as plain:
            chosen = context or self.context()
            with chosen.wrap_socket(plain, server_hostname=NAME) as secure:
                yield Wire(secure)

    @contextmanager
    def plainly(self) -> Iterator[socket.socket]:
        """The connection before TLS starts, with a small receive buffer."""
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            plain.settimeout(DEADLINE)
            plain.connect(("127.0.0.1", self.port))
            yield plain


@contextmanager
def tls_site(directory: Path, authority: trustme.CA) -> Iterator[TlsSite]:
    """Start it with a certificate, ``server.pem`` in ``directory``.

    It is of an authority below ``authority``, and that is what clients believe.
    """
    pem, roots = directory / "server.pem", directory / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    certificate = authority.create_child_ca().issue_cert(NAME)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    plain, secure = free_port(), free_port()
    endpoints = [
        f"tcp:{plain}:interface=127.0.0.1",
        f"ssl:{secure}:interface=127.0.0.1:privateKey={pem}",
    ]
    options = [option for endpoint in endpoints for option in ("--endpoint", endpoint)]
    ini = f"[server]\nallowed_hosts = {NAME}\n"
    with (
        served_directory(directory) as archive,
        running_cartd(
            directory / "cartd", archive=archive.url, options=options, ini=ini, port=plain
        ) as cartd,
    ):
        yield TlsSite(CartSite(directory, cartd, archive), secure, roots)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
