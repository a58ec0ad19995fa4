"""``cartd-cmd``: the commands for administrators."""

from cartd.cli.main import main

__all__ = ["main"]
