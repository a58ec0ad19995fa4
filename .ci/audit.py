"""Ask whether a version that requirements.txt pins is known to be vulnerable.

``audit.py [--or-warn] [ARGUMENT...]`` hands the arguments on to pip-audit.  What is found fails,
always.  What could not be asked fails as well, or with ``--or-warn`` is only told: not every place
in which the checks run reaches a service that knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

AWAY = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError")
"""How the last lines of pip-audit begin to tell that the service did not answer."""


def main(arguments: list[str]) -> int:
    may_be_away = "--or-warn" in arguments
    given = [argument for argument in arguments if argument != "--or-warn"]
    if not any(argument in ("-r", "--requirement") for argument in given):
        given += ["-r", "requirements.txt"]
    asked = subprocess.run(
        # All of them are pinned, so pip has nothing to find out.
        [sys.executable, "-m", "pip_audit", "-f", "json", "--disable-pip", "--no-deps", *given],
        capture_output=True,
        text=True,
    )
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        last = (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        if not any(word in last for word in AWAY):
            print(f"audit: pip-audit failed: {last}", file=sys.stderr)
            return 1
        return _not_asked(f"nothing could be asked: {last}", may_be_away)
    found = [line for package in packages for line in _told(package)]
    for line in found:
        print(f"audit: {line}", file=sys.stderr)
    if found:
        return 1
    left_out = [package for package in packages if "skip_reason" in package]
    if left_out:
        many, why = f"{len(left_out)} of {len(packages)} packages", left_out[0]["skip_reason"]
        return _not_asked(f"{many} could not be asked for: {why}", may_be_away)
    print(f"audit: {len(packages)} packages, none known to be vulnerable")
    return 0


def _told(package: dict[str, Any]) -> list[str]:
    """A line for each thing that is known of the package."""
    return [
        f"{package['name']} {package['version']} has {known['id']}"
        f" ({', '.join(known['aliases']) or 'no other name'}),"
        f" mended in {', '.join(known['fix_versions']) or 'no version yet'}"
        for known in package.get("vulns", ())
    ]


def _not_asked(what: str, may_be_away: bool) -> int:
    print(f"audit: NOT AUDITED: {what}", file=sys.stderr)
    return 0 if may_be_away else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
