"""The service against its own description, by schemathesis: requests made of the document.

``running.py`` starts it, ``hooks.py`` is what schemathesis loads, ``schemathesis.toml`` its
settings.  ``python -m tests.api_check --minutes 10`` asks for so long.
"""
