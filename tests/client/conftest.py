"""One service with an archive for all client tests of a module, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from cartd.auth import TokenFile
from cartd_client import Client
from tests.support.cart_site import CartSite, cart_site
from tests.support.pacifica_cartd import pacifica_cartd
from tests.support.scripted_server import ScriptedServer
from tests.support.served_directory import ServedDirectory, served_directory


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A service without authentication, and its archive."""
    ini = "[page]\nlist = on\n"
    with cart_site(tmp_path_factory.mktemp("client"), ini=ini) as running:
        yield running


@pytest.fixture(scope="module")
def client(site: CartSite) -> Iterator[Client]:
    """A client of ``site`` that does not retry without end."""
    with Client(site.cartd.url, retries=5) as made:
        yield made


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of tokens, and those of an admin and of a user."""
    file = TokenFile(tmp_path_factory.mktemp("auth") / "tokens")
    made = {"root": file.add("root", admin=True), "alice": file.add("alice", admin=False)}
    return file.path, made


@pytest.fixture(scope="module")
def auth_site(
    tmp_path_factory: pytest.TempPathFactory, tokens: tuple[Path, dict[str, str]]
) -> Iterator[CartSite]:
    """A service that requires one of ``tokens``, and has no event streams."""
    ini = f"[auth]\ntoken_file = {tokens[0]}\n[server]\nmax_event_streams = 0\n"
    with cart_site(tmp_path_factory.mktemp("client-auth"), ini=ini) as running:
        yield running


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Start servers that send what the test says, and stop them at its end."""
    servers: list[ScriptedServer] = []

    def start(*answers: bytes | Iterable[bytes]) -> ScriptedServer:
        servers.append(ScriptedServer(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def pacifica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ServedDirectory]]:
    """URL and archive of a Pacifica Cartd 0.7.0."""
    directory = tmp_path_factory.mktemp("pacifica")
    with (
        served_directory(directory) as archive,
        pacifica_cartd(directory / "cartd", archive.url) as url,
    ):
        yield url, archive
