"""What the site has chosen: options, environment and file made into one value."""

from cartd.config.config import Config, load, parse_size, sqlalchemy_url

__all__ = ["Config", "load", "parse_size", "sqlalchemy_url"]
