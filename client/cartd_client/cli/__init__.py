"""The command ``cart``: options, output, progress and exit statuses over the Python API."""
