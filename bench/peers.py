"""Installs what the comparisons need: Debian commands and a virtual environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_TOOLS = Path(__file__).parent.parent / "demo" / "tools"
_REQUIREMENTS = Path(__file__).parent / "peers.txt"


class PeerUnavailable(Exception):
    """A peer is not available; the message says why."""


def tool(command: str) -> str:
    """Return the path of a Debian command; install it if necessary and permitted."""
    if shutil.which(command) is None:
        done = subprocess.run([_TOOLS, command], capture_output=True, text=True)
        if done.returncode != 0:
            raise PeerUnavailable(f"{command}: {_last_line(done.stderr)}")
    path = shutil.which(command)
    if path is None:
        raise PeerUnavailable(f"{command} is not there though its package was installed")
    return path


def environment(place: Path) -> Path:
    """Return the ``bin`` directory of the peers' virtual environment, created or updated."""
    return _environment(place / "venv", _REQUIREMENTS.read_text())


def pictures(place: Path) -> Path:
    """Return the ``bin`` directory of an environment for ``draw.py``, without the peers."""
    lines = _REQUIREMENTS.read_text().splitlines()
    wanted = [line for line in lines if line.startswith("matplotlib")]
    return _environment(place / "pictures", "\n".join(wanted))


def _environment(venv: Path, wanted: str) -> Path:
    done = venv / ".done"
    if not done.exists() or done.read_text() != wanted:
        print(f"installing into {venv}", file=sys.stderr)
        requirements = venv / "requirements.txt"
        _run(sys.executable, "-m", "venv", str(venv))
        requirements.write_text(wanted)
        _run(str(venv / "bin/pip"), "install", "-q", "-r", str(requirements))
        done.write_text(wanted)
    return venv / "bin"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise PeerUnavailable(f"{Path(command[0]).name}: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
