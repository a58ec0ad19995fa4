"""``cartd-cmd``: the commands for administrators."""
