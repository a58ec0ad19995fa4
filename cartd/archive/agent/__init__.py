"""An HTTP/1.1 client for below treq: persistent connections over llhttp, in few steps a request."""

from cartd.archive.agent.agent import Agent
from cartd.archive.agent.pool import Pool
from cartd.archive.agent.request import Request

__all__ = ["Agent", "Pool", "Request"]
