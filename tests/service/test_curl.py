"""The commands that the REST reference documents, and curl at the limits of bodies."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import DEADLINE

PAGE = (Path(__file__).parents[2] / "docs/rest.md").read_text(encoding="utf-8")
DOCUMENTED = "http://127.0.0.1:8081/"
FILES = {"run1/weather.csv": b"temperature,pressure\n21.5,1013\n", "run1/image.raw": b"\0" * 9999}
LIMIT = 3_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("site")
    with cart_site(directory, ini=f"[server]\nmax_manifest_size = {LIMIT}\n") as running:
        yield running


def shell(site: CartSite, command: str, directory: Path) -> str:
    """Run a command of the page against this service; return its output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(DOCUMENTED, f"{site.cartd.url}/")],
        cwd=directory,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.decode()


def documented(start: str) -> str:
    """Return the first block of the page that begins with ``start``."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


def answers_to(start: str) -> list[str]:
    """Return the responses shown below the first command that begins with ``start``."""
    behind = PAGE[PAGE.index(f"```sh\n{start}") :]
    found = re.search(r"```sh\n.*?```\s+```(?:json)?\n(.*?)```", behind, re.DOTALL)
    assert found
    return found[1].splitlines()


LIST = 'curl "http://127.0.0.1:8081/-/carts/my-cart/files'
CARTS = 'curl "http://127.0.0.1:8081/-/carts?'
LINES = "curl -H 'Accept: application/x-ndjson'"


def test_documented_commands_download_a_cart(site: CartSite, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(site.manifest(FILES))
    post, head, delete = "curl -X POST --upload-file", "curl -I -X HEAD", "curl -X DELETE"
    assert [shell(site, documented(post), tmp_path)] == answers_to(post)
    shell(site, documented("while curl").replace("sleep 2", "sleep 0.05"), tmp_path)
    printed = shell(site, documented(head), tmp_path).splitlines()
    assert printed[0] == answers_to(head)[0] == "HTTP/1.1 204 No Content"
    names = {line.partition(":")[0] for line in answers_to(head)[1:]}
    assert {line.partition(":")[0] for line in printed[1:] if line} == names
    assert "X-Pacifica-Status: ready" in printed
    listed, *_ = answers_to(LIST)
    assert json.loads(shell(site, documented(LIST), tmp_path)).keys() == json.loads(listed).keys()
    lines = shell(site, documented(LINES), tmp_path).splitlines()
    assert [json.loads(line)["position"] for line in lines] == [1]
    assert shell(site, documented("curl -X PUT"), tmp_path) == "".join(answers_to("curl -X PUT"))
    retry = "curl -X POST http://127.0.0.1:8081/-/carts/my-cart/retry"
    [refused], said = answers_to(retry), json.loads(shell(site, documented(retry), tmp_path))
    assert json.loads(refused).items() <= said.items()
    planning = "curl -X POST --data-binary @manifest.json"
    planned, *_ = answers_to(planning)
    assert json.loads(shell(site, documented(planning), tmp_path)).keys() == (
        json.loads(planned).keys()
    )
    unlisted = json.loads(shell(site, documented(CARTS), tmp_path))
    assert "[page] list" in unlisted["detail"]
    shell(site, documented("curl -O -J"), tmp_path)
    assert shell(site, documented("tar tvf"), tmp_path).count("\n") == 4
    shell(site, "tar xf my-data.tar", tmp_path)
    for path, data in FILES.items():
        assert (tmp_path / "my-data" / path).read_bytes() == data
    shown = shell(site, documented("curl -s -D -"), tmp_path).splitlines()
    names = {line.partition(":")[0] for line in answers_to("curl -s -D -")[1:]}
    assert {line.partition(":")[0] for line in shown[1:] if line} == names
    assert [shell(site, documented(delete), tmp_path)] == answers_to(delete)
    missing = "curl http://127.0.0.1:8081/no-such-cart"
    assert [shell(site, documented(missing), tmp_path)] == answers_to(missing)


def curl(*arguments: str, status: int = 0, stdin: bytes = b"") -> str:
    done = subprocess.run(
        ["curl", "-sS", *arguments], input=stdin, capture_output=True, timeout=DEADLINE
    )
    assert done.returncode == status, (shlex.join(arguments), done.stderr)
    return done.stdout.decode()


WRITTEN = "\n%{http_code} %{size_upload}"


@pytest.mark.parametrize("way", [["--upload-file"], ["-X", "POST", "--data-binary"]],
                         ids=["upload", "data"])  # fmt: skip
def test_curl_does_not_send_a_body_that_is_over_the_limit(
    site: CartSite, way: list[str], tmp_path: Path
) -> None:
    body = tmp_path / "body"
    body.write_bytes(b" " * (LIMIT + 1))
    file = f"@{body}" if way[-1] == "--data-binary" else str(body)
    said = curl(
        *("-X", "POST", "-H", "Expect: 100-continue", "-w", WRITTEN),
        *(*way, file, f"{site.cartd.url}/too-long"),
    )
    answer, _, written = said.rpartition("\n")
    assert written == "413 0"
    assert (
        json.loads(answer)["message"]
        == f"The body exceeds {LIMIT} bytes (server.max_manifest_size)"
    )


def test_curl_sends_a_large_body_after_100_continue(site: CartSite, tmp_path: Path) -> None:
    body = site.manifest(FILES)
    file = tmp_path / "body"
    file.write_bytes(body + b" " * (LIMIT - len(body)))
    target = f"{site.cartd.url}/padded"
    said = curl("-X", "POST", "-H", "Expect: 100-continue", "-w", WRITTEN, "-T", str(file), target)
    assert said == f'{{"message": "Cart Processing has begun"}}\n201 {LIMIT}'


def test_curl_sends_chunks_up_to_the_limit(site: CartSite) -> None:
    target = f"{site.cartd.url}/piped"
    said = curl("-X", "POST", "-T", "-", target, stdin=site.manifest(FILES))
    assert said == '{"message": "Cart Processing has begun"}'
    site.cartd.wait_until("piped", "ready")
    over = curl("-X", "POST", "-T", "-", "-w", WRITTEN, target, stdin=b" " * (LIMIT + 99_999))
    assert '"413 Content Too Large"' in over


def test_curl_reads_every_error_as_json(site: CartSite) -> None:
    target = f"{site.cartd.url}/nobody"
    for method, code in (("GET", 404), ("DELETE", 404), ("PUT", 405), ("POST", 400)):
        said = curl("-X", method, "-w", "\n%{http_code}", target)
        body, _, status = said.rpartition("\n")
        assert status == str(code)
        assert json.loads(body)["status"].startswith(status)
