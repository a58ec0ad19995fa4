"""Print the description, for ``docs/openapi.json``."""

import sys

from cartd import api_description

sys.stdout.write(api_description.text())
