"""Print the document, for ``docs/openapi.json``."""

import sys

from cartd import openapi

sys.stdout.write(openapi.to_json())
