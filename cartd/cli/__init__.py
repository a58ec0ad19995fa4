"""``cartd-cmd``: the commands for administrators."""

from cartd.cli.commands import main

__all__ = ["main"]
