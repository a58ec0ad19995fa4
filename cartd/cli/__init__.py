"""``cartd-cmd``: the commands for who runs the service."""

from cartd.cli.commands import main

__all__ = ["main"]
