"""Check the versions that requirements.txt pins for known vulnerabilities.

``audit.py [--or-warn] [ARGUMENT...]`` passes the arguments to pip-audit.  A vulnerability always
fails.  An unreachable vulnerability service fails, too, or with ``--or-warn`` is only reported:
not every machine on which the checks run can reach it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError")
"""Names in pip-audit's last line if the service did not answer."""


def main(arguments: list[str]) -> int:
    warn_only = "--or-warn" in arguments
    given = [argument for argument in arguments if argument != "--or-warn"]
    if not any(argument in ("-r", "--requirement") for argument in given):
        given += ["-r", "requirements.txt"]
    completed = subprocess.run(
        # All of them are pinned, so pip has nothing to find out.
        [sys.executable, "-m", "pip_audit", "-f", "json", "--disable-pip", "--no-deps", *given],
        capture_output=True,
        text=True,
    )
    try:
        packages = json.loads(completed.stdout)["dependencies"]
    except ValueError:
        last = (completed.stderr.strip().splitlines() or [f"status {completed.returncode}"])[-1]
        if not any(word in last for word in UNREACHABLE):
            print(f"audit: pip-audit failed: {last}", file=sys.stderr)
            return 1
        return _not_audited(f"nothing could be asked: {last}", warn_only)
    found = [line for package in packages for line in _vulnerabilities(package)]
    for line in found:
        print(f"audit: {line}", file=sys.stderr)
    if found:
        return 1
    left_out = [package for package in packages if "skip_reason" in package]
    if left_out:
        many, why = f"{len(left_out)} of {len(packages)} packages", left_out[0]["skip_reason"]
        return _not_audited(f"{many} could not be asked for: {why}", warn_only)
    print(f"audit: {len(packages)} packages, none known to be vulnerable")
    return 0


def _vulnerabilities(package: dict[str, Any]) -> list[str]:
    """Return a line for each known vulnerability of the package."""
    return [
        f"{package['name']} {package['version']} has {known['id']}"
        f" ({', '.join(known['aliases']) or 'no other name'}),"
        f" mended in {', '.join(known['fix_versions']) or 'no version yet'}"
        for known in package.get("vulns", ())
    ]


def _not_audited(what: str, warn_only: bool) -> int:
    print(f"audit: NOT AUDITED: {what}", file=sys.stderr)
    return 0 if warn_only else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
