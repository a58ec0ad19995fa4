"""What the site has chosen: options, environment and file made into one value."""

from cartd.config.config import Config, load, parse_size, sqlalchemy_url
from cartd.config.values import UNIX, Network

__all__ = ["UNIX", "Config", "Network", "load", "parse_size", "sqlalchemy_url"]
