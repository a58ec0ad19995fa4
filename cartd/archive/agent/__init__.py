"""HTTP/1.1 agent for treq: persistent connections, responses parsed by llhttp."""

from cartd.archive.agent.agent import Agent
from cartd.archive.agent.pool import Pool
from cartd.archive.agent.request import Request

__all__ = ["Agent", "Pool", "Request"]
