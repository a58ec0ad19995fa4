"""The HTTP server around the routes of ``cartd.rest``: connections, limits, timeouts, logs."""
