"""Exact tokens, cost and timing of every chat completion that passes through your ASGI app."""

from arbstr_asgi.app import Arbstr
from arbstr_asgi.callers import Caller
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Drain, Provider
from arbstr_asgi.config.rates import Rates
from arbstr_asgi.config.settings import DatabaseConfig, Failover, Limits, Logging, Server, Token
from arbstr_asgi.errors import ArbstrError, ConfigError, LedgerError
from arbstr_asgi.middleware import ArbstrMiddleware

__version__ = "0.1.0"

__all__ = [
    "Arbstr",
    "ArbstrError",
    "ArbstrMiddleware",
    "Caller",
    "Config",
    "ConfigError",
    "DatabaseConfig",
    "Drain",
    "Failover",
    "LedgerError",
    "Limits",
    "Logging",
    "Policies",
    "Provider",
    "Rates",
    "Rule",
    "Server",
    "Token",
]
