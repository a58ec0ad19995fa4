"""``make check`` runs pip-audit and bandit: findings fail, an unreachable service warns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.free_ports import free_port

ROOT = Path(__file__).parents[2]
VULNERABLE = "vulnerable"


class Known(BaseHTTPRequestHandler):
    """Answers as a vulnerability service by the OSV protocol, which knows of one package."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = {
            "id": "PYSEC-2026-1",
            "aliases": ["CVE-2026-1"],
            "summary": "",
            "modified": "2026-11-24T00:00:00Z",
            "affected": [
                {
                    "package": asked["package"],
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "1.1"}]}],
                }
            ],
        }
        vulns = [known] if asked["package"]["name"] == VULNERABLE else []
        body = json.dumps({"vulns": vulns} if vulns else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Known)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    serving.join()
    server.server_close()


def audit(directory: Path, service: str, *options: str, pinned: str) -> tuple[int, str]:
    """Return the exit status and the one line of output."""
    requirements = directory / "requirements.txt"
    requirements.write_text(pinned)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / ".ci/audit.py"), *options),
            *("-r", str(requirements), "-s", "osv", "--osv-url", service),
        ],
        capture_output=True,
        text=True,
    )
    [line] = (done.stdout + done.stderr).splitlines()
    return done.returncode, line


def test_a_version_that_is_known_to_be_vulnerable_fails(tmp_path: Path, service: str) -> None:
    pinned = f"sound==2.0\n{VULNERABLE}==1.0\n"
    status, line = audit(tmp_path, service, "--or-warn", pinned=pinned)
    assert status == 1
    assert line == "audit: vulnerable 1.0 has PYSEC-2026-1 (CVE-2026-1), mended in 1.1"


def test_what_is_not_known_to_be_vulnerable_passes(tmp_path: Path, service: str) -> None:
    status, line = audit(tmp_path, service, pinned="sound==2.0\n")
    assert (status, line) == (0, "audit: 1 packages, none known to be vulnerable")


@pytest.mark.parametrize(
    ("options", "status"), [([], 1), (["--or-warn"], 0)], ids=["audit", "check"]
)
def test_an_unreachable_service_fails_the_audit_not_the_check(
    tmp_path: Path, options: list[str], status: int
) -> None:
    unreachable = f"http://127.0.0.1:{free_port()}/"
    ended, line = audit(tmp_path, unreachable, *options, pinned="sound==2.0\n")
    assert ended == status
    assert line.startswith("audit: NOT AUDITED: nothing could be asked: ")


def test_unreadable_requirements_fail_the_check(tmp_path: Path) -> None:
    status, line = audit(tmp_path, "http://127.0.0.1/", "--or-warn", pinned="== no package\n")
    assert status == 1
    assert line.startswith("audit: pip-audit failed: ")


def bandit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run bandit with the options of the Makefile on other files."""
    [command] = [
        line.split()[1:]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if "/bandit " in line
    ]
    options = command[: command.index("--recursive")]
    return subprocess.run(
        [sys.executable, "-m", "bandit", *options, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_bandit_fails_on_dangerous_patterns(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import hashlib, pickle, ssl, subprocess\n"
        "pickle.loads(b'')\n"
        "subprocess.run('ls', shell=True)\n"
        "hashlib.md5(b'')\n"
        "ssl._create_unverified_context()\n"
        "assert ssl\n"
    )
    done = bandit(str(planted))
    assert done.returncode == 1
    found = set(re.findall(r"Issue: \[(B\d+):", done.stdout))
    assert {"B301", "B602", "B324", "B323"} <= found and "B101" not in found
