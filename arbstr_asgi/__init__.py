"""Exact tokens, cost and timing of every chat completion that passes through your ASGI app."""

from arbstr_asgi.app import Arbstr, ArbstrMiddleware
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Drain, Provider, Rates
from arbstr_asgi.config.settings import DatabaseConfig, Failover, Limits, Logging, Server, Token
from arbstr_asgi.errors import ArbstrError, ConfigError, LedgerError
from arbstr_asgi.gateway.auth import Caller

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
