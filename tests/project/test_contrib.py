"""The files for systemd and fail2ban in contrib/ match the service and its documentation."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from configparser import ConfigParser
from pathlib import Path

import pytest
from twisted.scripts._twistd_unix import ServerOptions

from cartd.config import load
from cartd.http.access_log import REJECTED_STATUSES
from cartd.options import Options
from tests.project.test_documentation import ROOT, blocks, rows, section

UNIT = ROOT / "contrib/systemd/cartd.service"
FAIL2BAN = ROOT / "contrib/fail2ban"
INSTALLATION = ROOT / "docs/installation.md"


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """The unit's settings; a key may come more than once."""
    settings = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            settings[key].append(value)
    return settings


def command(unit: dict[str, list[str]]) -> tuple[str, list[str], list[str]]:
    """Return the program of the unit, the options of twistd and those of cartd."""
    [start] = unit["ExecStart"]
    program, *options = start.split()
    at = options.index("cartd")
    return program, options[:at], options[at + 1 :]


def test_the_options_of_the_unit_are_valid(
    unit: dict[str, list[str]],
) -> None:
    program, of_twistd, of_cartd = command(unit)
    assert Path(program).name == "twistd"
    twistd, cartd = ServerOptions(), Options()
    twistd.parseOptions(of_twistd)
    cartd.parseOptions(of_cartd)
    assert twistd["nodaemon"] and not twistd["pidfile"]
    assert cartd["config"]


def test_the_installation_creates_the_units_user_and_paths(unit: dict[str, list[str]]) -> None:
    program, _, of_cartd = command(unit)
    options = Options()
    options.parseOptions(of_cartd)
    steps = "".join(blocks(INSTALLATION, "sh"))
    assert f"python3 -m venv {Path(program).parent.parent}\n" in steps
    directory = Path(options["config"]).parent
    assert re.search(rf"^install -d .* {directory}$", steps, flags=re.MULTILINE)
    assert f"--config {options['config']} " in steps
    [user] = unit["User"]
    assert re.search(rf"^useradd .* {user}$", steps, flags=re.MULTILINE)
    assert f"cp {UNIT.relative_to(ROOT)} /etc/systemd/system/\n" in steps


def test_the_unit_permits_the_documented_writes(
    unit: dict[str, list[str]],
) -> None:
    [shown] = [block for block in blocks(INSTALLATION, "ini") if "volume_path" in block]
    config = load(options={}, environ={}, ini=shown, ini_name="config.ini")
    assert unit["ProtectSystem"] == ["strict"]
    writable = Path("/var/lib") / unit["StateDirectory"][0]
    assert unit["WorkingDirectory"] == [str(writable)]
    assert config.volume_path.is_relative_to(writable)
    assert config.database_url.startswith(f"sqlite:///{writable}/")


def test_the_unit_waits_for_the_service_and_watches_it(unit: dict[str, list[str]]) -> None:
    assert unit["Type"] == ["notify"]
    # A start waits for the database for minutes.
    assert unit["TimeoutStartSec"] == ["infinity"]
    assert int(unit["WatchdogSec"][0]) >= 30
    assert "AF_UNIX" in unit["RestrictAddressFamilies"][0]
    # ExecStart is the process that notifies.
    assert "NotifyAccess" not in unit and unit["ExecStart"][0].split()[1] == "-n"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text().replace("/opt/cartd/bin/twistd", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", installed], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_allows_enough_time_for_a_stop(unit: dict[str, list[str]]) -> None:
    grace = load(options={}, environ={}, ini="", ini_name="config.ini").shutdown_grace
    documented = re.search(
        r"Allow the service (\d+) seconds", (ROOT / "docs/reliability.md").read_text()
    )
    assert documented
    assert int(unit["TimeoutStopSec"][0]) >= int(documented[1]) > grace


def test_the_sandbox_allows_what_the_service_needs(unit: dict[str, list[str]]) -> None:
    # OpenSSL calls back through memory that cffi makes executable.
    assert unit["MemoryDenyWriteExecute"] in ([], ["no"])
    # /proc/sys/kernel/random/boot_id identifies the holder of a lease.
    assert unit["ProcSubset"] in ([], ["all"])
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} == set(unit["RestrictAddressFamilies"][0].split())
    # Long manifests are written to a disk, in a private directory.
    assert unit["Environment"] == ["TMPDIR=/var/tmp"]
    assert unit["PrivateTmp"] == ["yes"]


def test_the_unit_leaves_the_service_no_privileges(unit: dict[str, list[str]]) -> None:
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
    assert unit["SystemCallFilter"][0] == "@system-service"
    assert "@privileged" in unit["SystemCallFilter"][1].removeprefix("~").split()
    assert unit["UMask"] == ["0077"]


def statuses(text: str) -> set[int]:
    return {int(status) for status in re.findall(r"\b[1-5]\d\d\b", text)}


def test_the_jails_match_rejections_but_not_busy_clients() -> None:
    filters = ConfigParser(interpolation=None)
    filters.read(FAIL2BAN / "filter.d/cartd.conf")
    jails = ConfigParser(interpolation=None)
    jails.read(FAIL2BAN / "jail.d/cartd.conf")
    in_first = statuses(filters["Definition"]["statuses"])
    in_second = statuses(jails["cartd-guessing"]["filter"])
    assert jails["cartd"]["filter"] == "cartd"
    assert in_first == REJECTED_STATUSES - {404, 429}
    assert in_second == {404}
    assert filters["Definition"]["journalmatch"] == f"_SYSTEMD_UNIT={UNIT.name}"


def test_every_refusal_is_explained() -> None:
    table = rows(section(ROOT / "docs/security.md", "Refused requests in the log"))
    assert set().union(*(statuses(row[0]) for row in table)) == REJECTED_STATUSES | {503}
